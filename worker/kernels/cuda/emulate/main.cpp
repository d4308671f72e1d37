// Executes operations: read from the standard input, the buffers as they are afterwards to the standard output.
//
// First the order of threads, the number of buffers and their bytes; then how many times to execute all operations, and
// their number. An operation is a kind and
// - of a launch (0) the kernel's name, the grid (x, y, z), threads of a block, bytes of shared memory, the number of
//   arguments and the arguments;
// - of a product (1) m, n, k, runs and precision, of each factor its place (buffer, offset), stride and whether it is
//   transposed, and the same of the result;
// - of a clearing (2) a place and bytes.
// Numbers are 32 bits, little-endian; names and bytes have their length before them.
#include "cuda_emulation.h"
#include "product.h"

#include "kernels.h"

#include <map>
#include <tuple>

struct Argument {
    // 0 a place in a buffer, 1 a null pointer, 2 a value.
    unsigned kind = 1;
    char* place = nullptr;
    std::string bytes;
};

template <class T>
T unpacked(Argument& argument, int index) {
    if constexpr (std::is_pointer_v<T>) {
        if (argument.kind == 2) emulation::fail("argument " + std::to_string(index) + " is a pointer");
        return reinterpret_cast<T>(argument.place);
    } else {
        if (argument.kind != 2 || argument.bytes.size() != sizeof(T)) {
            emulation::fail("argument " + std::to_string(index) + " has " + std::to_string(sizeof(T)) + " bytes");
        }
        T value;
        std::memcpy(&value, argument.bytes.data(), sizeof value);
        return value;
    }
}

template <class... T, size_t... I>
std::function<void()> bound(void (*kernel)(T...), std::vector<Argument>& arguments, std::index_sequence<I...>) {
    if (arguments.size() != sizeof...(T)) {
        std::string takes = std::to_string(sizeof...(T)), given = std::to_string(arguments.size());
        emulation::fail("it takes " + takes + " arguments and was given " + given);
    }
    std::tuple<T...> values{unpacked<T>(arguments[I], I)...};
    return [=] { std::apply(kernel, values); };
}

using Binder = std::function<std::function<void()>(std::vector<Argument>&)>;

template <class... T>
Binder binder(void (*kernel)(T...)) {
    return [=](std::vector<Argument>& arguments) {
        return bound(kernel, arguments, std::index_sequence_for<T...>{});
    };
}

static unsigned number() {
    unsigned value;
    if (std::fread(&value, sizeof value, 1, stdin) != 1) emulation::fail("the launch is cut short");
    return value;
}

static std::string text() {
    std::string bytes(number(), 0);
    if (std::fread(bytes.data(), 1, bytes.size(), stdin) != bytes.size()) emulation::fail("the launch is cut short");
    return bytes;
}

static char* place(const std::vector<emulation::Guarded>& buffers) {
    unsigned buffer = number(), offset = number();
    return buffers.at(buffer).start + offset;
}

static Argument argument(const std::vector<emulation::Guarded>& buffers) {
    Argument argument;
    argument.kind = number();
    if (argument.kind == 0) argument.place = place(buffers);
    else if (argument.kind == 2) argument.bytes = text();
    return argument;
}

static std::function<void()> launch(const std::vector<emulation::Guarded>& buffers, unsigned order) {
#define KERNEL(name) {#name, binder(name)},
    static const std::map<std::string, Binder> kernels = {KERNELS};
    std::string name = text();
    Dim3 grid;
    grid.x = number(), grid.y = number(), grid.z = number();
    unsigned threads = number(), bytes = number();
    std::vector<Argument> arguments(number());
    for (Argument& one : arguments) one = argument(buffers);
    auto found = kernels.find(name);
    if (found == kernels.end()) emulation::fail("there is no kernel " + name);
    std::function<void()> kernel = found->second(arguments);
    return [=] { emulation::launch(kernel, grid, threads, bytes, order); };
}

static std::function<void()> product(const std::vector<emulation::Guarded>& buffers) {
    Product of;
    of.m = number(), of.n = number(), of.k = number(), of.runs = number(), of.precision = number();
    for (Matrix* matrix : {&of.left, &of.right, &of.out}) {
        matrix->start = reinterpret_cast<float*>(place(buffers));
        matrix->stride = number(), matrix->transposed = number();
    }
    return [=] { multiply(of); };
}

static std::function<void()> operation(const std::vector<emulation::Guarded>& buffers, unsigned order) {
    switch (number()) {
    case 0: return launch(buffers, order);
    case 1: return product(buffers);
    default: {
        char* start = place(buffers);
        size_t bytes = number();
        return [=] { std::memset(start, 0, bytes); };
    }
    }
}

int main() {
    unsigned order = number();
    std::vector<emulation::Guarded> buffers(number());
    for (emulation::Guarded& buffer : buffers) {
        std::string content = text();
        buffer = emulation::Guarded(content.size());
        std::memcpy(buffer.start, content.data(), content.size());
    }
    unsigned times = number();
    std::vector<std::function<void()>> operations(number());
    for (auto& one : operations) one = operation(buffers, order);
    while (times-- > 0) {
        for (const auto& one : operations) one();
    }
    for (const emulation::Guarded& buffer : buffers) std::fwrite(buffer.start, 1, buffer.size, stdout);
    return std::fflush(stdout) == 0 ? 0 : 1;
}
