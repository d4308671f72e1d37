// Executes one launch: read from the standard input, the buffers as they are afterwards to the standard output.
//
// A launch is the kernel's name, the grid (x, y, z), threads of a block, bytes of shared memory, the order of threads,
// the number of buffers and their bytes, the number of arguments and the arguments. Numbers are 32 bits, little-endian;
// names and bytes have their length before them.
#include "cuda_emulation.h"

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

static Argument argument(const std::vector<emulation::Guarded>& buffers) {
    Argument argument;
    argument.kind = number();
    if (argument.kind == 0) {
        unsigned buffer = number(), offset = number();
        argument.place = buffers.at(buffer).start + offset;
    } else if (argument.kind == 2) {
        argument.bytes = text();
    }
    return argument;
}

int main() {
#define KERNEL(name) {#name, binder(name)},
    const std::map<std::string, Binder> kernels = {KERNELS};
    std::string name = text();
    Dim3 grid;
    grid.x = number(), grid.y = number(), grid.z = number();
    unsigned threads = number(), bytes = number(), order = number();
    std::vector<emulation::Guarded> buffers(number());
    for (emulation::Guarded& buffer : buffers) {
        std::string content = text();
        buffer = emulation::Guarded(content.size());
        std::memcpy(buffer.start, content.data(), content.size());
    }
    std::vector<Argument> arguments(number());
    for (Argument& one : arguments) one = argument(buffers);
    auto found = kernels.find(name);
    if (found == kernels.end()) emulation::fail("there is no kernel " + name);
    emulation::launch(found->second(arguments), grid, threads, bytes, order);
    for (const emulation::Guarded& buffer : buffers) std::fwrite(buffer.start, 1, buffer.size, stdout);
    return std::fflush(stdout) == 0 ? 0 : 1;
}
