// A stand-in for NVIDIA's libraries that executes on the CPU, so that a machine without a GPU can test how ours and candle
// call them: one library under all names (see driver.sh), with the functions that these use and no others. Of GPUs there are
// two, which have their memory in common.
//
// Memory of the device is memory of the host, filled with ones: NaN. Nothing is asynchronous, but what is captured is
// recorded, and done when the graph is launched. What the real libraries forbid or leave undefined is an error here: a
// synchronisation, copy or allocation during a capture, matrices that do not fit each other, an attribute of another
// size, an algorithm or a workspace that was not asked for. A function is found by its name in the PTX, and is what g++
// makes of its source.
#include "candle.h"
#include "cuda_emulation.h"
#include "product.h"

#include "kernels.h"

#include <map>
#include <mutex>
#include <tuple>

using Job = std::function<void()>;
using Graph = std::vector<Job>;
using Binder = std::function<Job(void**)>;

enum Status { SUCCESS = 0, REFUSED = 7, NO_DEVICE = 101, NOT_FOUND = 500 };

// Kernels are executed by one thread at a time. A capture keeps the others out until it ends.
static std::recursive_mutex machine;
static Graph* captured = nullptr;

static int submit(Job job) {
    std::lock_guard<std::recursive_mutex> alone(machine);
    if (captured) captured->push_back(job);
    else job();
    return SUCCESS;
}

static int now(const char* what, const Job& job) {
    std::lock_guard<std::recursive_mutex> alone(machine);
    if (captured) emulation::fail(std::string(what) + " during a capture");
    job();
    return SUCCESS;
}

template <class... T, size_t... I>
Job bound(void (*kernel)(T...), void** arguments, std::index_sequence<I...>) {
    std::tuple<T...> values{*static_cast<T*>(arguments[I])...};
    return [=] { std::apply(kernel, values); };
}

template <class... T>
Binder binder(void (*kernel)(T...)) {
    return [=](void** arguments) { return bound(kernel, arguments, std::index_sequence_for<T...>{}); };
}

// A kernel: of ours, which every thread of a launch executes, or of candle, executed once for all of them.
struct Function {
    Binder binder;
    bool whole;
};

static std::map<std::string, Function> all_kernels() {
#define KERNEL(name) {#name, {binder(name), false}},
    std::map<std::string, Function> all = {KERNELS};
    candle::list([&](const std::string& name, auto kernel) { all[name] = {binder(+kernel), true}; });
    return all;
}
static std::map<std::string, Function> kernels = all_kernels();

extern "C" {

int cuInit(unsigned) { return SUCCESS; }
// NVRTC asks the driver, where it finds one, for what no header tells, and dies where it cannot even ask.
int cuGetExportTable(const void** out, const void*) { return *out = nullptr, NOT_FOUND; }
int cuGetErrorName(int, const char** out) { return *out = "STAND_IN", SUCCESS; }
int cuGetErrorString(int, const char** out) { return *out = "the stand-in refuses", SUCCESS; }

int cuDeviceGet(int* out, int ordinal) { return *out = ordinal, ordinal < 2 ? SUCCESS : NO_DEVICE; }
int cuDeviceGetAttribute(int* out, int attribute, int) {
    // Compute capability 9.0, and shared memory of a block as it has it.
    static const std::map<int, int> known = {{75, 9}, {76, 0}, {97, 232448}};
    auto found = known.find(attribute);
    return *out = found == known.end() ? 1 : found->second, SUCCESS;
}
int cuDevicePrimaryCtxRetain(void** out, int) { return *out = &machine, SUCCESS; }
int cuDevicePrimaryCtxRelease_v2(int) { return SUCCESS; }
int cuCtxGetCurrent(void** out) { return *out = &machine, SUCCESS; }
int cuCtxSetCurrent(void*) { return SUCCESS; }
int cuCtxSynchronize() {
    return now("a synchronisation", [] {});
}

int cuStreamCreate(void** out, unsigned) { return *out = &captured, SUCCESS; }
int cuStreamDestroy_v2(void*) { return SUCCESS; }
int cuStreamSynchronize(void*) {
    return now("a synchronisation", [] {});
}

// Everything is done when it is asked for, so that nobody has to wait.
int cuEventCreate(void** out, unsigned) { return *out = &captured, SUCCESS; }
int cuEventDestroy_v2(void*) { return SUCCESS; }
int cuEventRecord(void*, void*) { return SUCCESS; }
int cuStreamWaitEvent(void*, void*, unsigned) { return SUCCESS; }
int cuStreamIsCapturing(void*, int* out) { return *out = captured != nullptr, SUCCESS; }

int cuMemGetInfo_v2(size_t* free, size_t* total) { return *free = *total = size_t(1) << 30, SUCCESS; }

int cuMemAllocAsync(unsigned long long* out, size_t bytes, void*) {
    return now("an allocation", [=] {
        void* at = std::aligned_alloc(256, (bytes + 256) / 256 * 256);
        *out = reinterpret_cast<unsigned long long>(std::memset(at, 0xff, bytes));
    });
}
int cuMemFreeAsync(unsigned long long at, void*) {
    return now("a release", [=] { std::free(reinterpret_cast<void*>(at)); });
}
int cuMemsetD8Async(unsigned long long at, unsigned char value, size_t bytes, void*) {
    return submit([=] { std::memset(reinterpret_cast<void*>(at), value, bytes); });
}
int cuMemcpyHtoDAsync_v2(unsigned long long to, const void* from, size_t bytes, void*) {
    return now("a copy", [=] { std::memcpy(reinterpret_cast<void*>(to), from, bytes); });
}
int cuMemcpyDtoHAsync_v2(void* to, unsigned long long from, size_t bytes, void*) {
    return now("a copy", [=] { std::memcpy(to, reinterpret_cast<void*>(from), bytes); });
}

int cuMemcpyDtoDAsync_v2(unsigned long long to, unsigned long long from, size_t bytes, void*) {
    return submit([=] { std::memcpy(reinterpret_cast<void*>(to), reinterpret_cast<void*>(from), bytes); });
}

int cuMemcpyPeerAsync(unsigned long long to, void*, unsigned long long from, void*, size_t bytes, void* stream) {
    return cuMemcpyDtoDAsync_v2(to, from, bytes, stream);
}

int cuModuleLoadData(void** out, const void* text) { return *out = strdup(static_cast<const char*>(text)), SUCCESS; }
int cuModuleUnload(void* module) { return std::free(module), SUCCESS; }
int cuModuleGetFunction(void** out, void* module, const char* name) {
    auto found = kernels.find(name);
    if (found == kernels.end() || !std::strstr(static_cast<char*>(module), name)) {
        std::fprintf(stderr, "the stand-in has no kernel `%s`\n", name);
        return NOT_FOUND;
    }
    return *out = &found->second, SUCCESS;
}
int cuFuncGetAttribute(int* out, int, void*) { return *out = 1024, SUCCESS; }
int cuFuncSetAttribute(void*, int, int) { return SUCCESS; }
int cuLaunchKernel(
    void* function, unsigned x, unsigned y, unsigned z, unsigned threads, unsigned, unsigned, unsigned bytes, void*,
    void** arguments, void**
) {
    const Function& of = *static_cast<Function*>(function);
    Job kernel = of.binder(arguments);
    if (!of.whole) return submit([=] { emulation::launch(kernel, {x, y, z}, threads, bytes, 0); });
    return submit([=] {
        gridDim = {x, y, z};
        kernel();
    });
}

int cuStreamBeginCapture_v2(void*, int) {
    machine.lock();
    captured = new Graph;
    return SUCCESS;
}
int cuStreamEndCapture(void*, void** out) {
    *out = captured;
    captured = nullptr;
    machine.unlock();
    return SUCCESS;
}
int cuGraphInstantiateWithFlags(void** out, void* graph, unsigned long long) { return *out = graph, SUCCESS; }
int cuGraphUpload(void*, void*) { return SUCCESS; }
int cuGraphLaunch(void* graph, void*) {
    return now("a graph's launch", [=] {
        for (const Job& job : *static_cast<Graph*>(graph)) job();
    });
}
int cuGraphExecDestroy(void*) { return SUCCESS; }
int cuGraphDestroy(void* graph) { return delete static_cast<Graph*>(graph), SUCCESS; }

}

// A matrix as cuBLASLt has it: columns first.
struct Layout {
    uint64_t rows, columns;
    int64_t pitch;
    int32_t batch = 1;
    int64_t stride = 0;
};

struct Descriptor {
    int compute;
    int32_t transposed[2] = {0, 0};
};

struct Preference {
    uint64_t workspace = 0;
    uint32_t reductions = 7, alignment = 256;
};

// How factors are taken.
constexpr int F32 = 68, BF16 = 75, TF32 = 77;

// The only algorithm. It needs a workspace for each matrix of a batch.
constexpr uint64_t ALGORITHM = 77;
constexpr size_t WORKSPACE = 1000;

struct Choice {
    uint64_t algorithm[8];
    size_t workspace;
    int status;
    float waves;
    int reserved[4];
};

// Takes an attribute of the size that the library says.
template <class T>
static int set(T& to, const void* value, size_t bytes) {
    if (bytes != sizeof to) return REFUSED;
    std::memcpy(&to, value, bytes);
    return SUCCESS;
}

static int chosen(const Descriptor* of, const Layout* a, const Layout* b, const Layout* out, Choice* choice) {
    uint64_t rows = of->transposed[0] ? a->columns : a->rows, inner = of->transposed[0] ? a->rows : a->columns;
    uint64_t columns = of->transposed[1] ? b->rows : b->columns, other = of->transposed[1] ? b->columns : b->rows;
    if (rows != out->rows || columns != out->columns || inner != other) return REFUSED;
    if (a->batch != b->batch || a->batch != out->batch) return REFUSED;
    // To test what happens where an algorithm takes one matrix at a time.
    if (a->batch > 1 && std::getenv("STAND_IN_WITHOUT_BATCHES")) return REFUSED;
    *choice = {{ALGORITHM}, WORKSPACE * a->batch, SUCCESS, 1.0f, {}};
    return SUCCESS;
}

// Each element summed in the order of the inner dimension, as product.h does.
static void multiply_columns(Descriptor of, Layout a, Layout b, Layout out, const float* x, const float* y, float* to) {
    const unsigned cut = of.compute == TF32 ? 13 : of.compute == BF16 ? 16 : 0;
    const uint64_t inner = of.transposed[0] ? a.rows : a.columns;
    for (int run = 0; run < out.batch; run++, x += a.stride, y += b.stride, to += out.stride) {
        for (uint64_t i = 0; i < out.rows; i++) {
            for (uint64_t j = 0; j < out.columns; j++) {
                float sum = 0.0f;
                for (uint64_t k = 0; k < inner; k++) {
                    float left = of.transposed[0] ? x[k + i * a.pitch] : x[i + k * a.pitch];
                    float right = of.transposed[1] ? y[j + k * b.pitch] : y[k + j * b.pitch];
                    sum += shortened(left, cut) * shortened(right, cut);
                }
                to[i + j * out.pitch] = sum;
            }
        }
    }
}

extern "C" {

int cublasLtCreate(void** out) { return *out = &machine, SUCCESS; }
int cublasLtDestroy(void*) { return SUCCESS; }

int cublasLtMatrixLayoutCreate(Layout** out, int type, uint64_t rows, uint64_t columns, int64_t pitch) {
    if (type != 0 || pitch < static_cast<int64_t>(rows)) return REFUSED;
    return *out = new Layout{rows, columns, pitch}, SUCCESS;
}
int cublasLtMatrixLayoutSetAttribute(Layout* of, int attribute, const void* value, size_t bytes) {
    switch (attribute) {
    case 5: return set(of->batch, value, bytes);
    case 6: return set(of->stride, value, bytes);
    default: return REFUSED;
    }
}
int cublasLtMatrixLayoutDestroy(Layout* of) { return delete of, SUCCESS; }

int cublasLtMatmulDescCreate(Descriptor** out, int compute, int scale) {
    if (scale != 0) return REFUSED;
    return *out = new Descriptor{compute}, SUCCESS;
}
int cublasLtMatmulDescSetAttribute(Descriptor* of, int attribute, const void* value, size_t bytes) {
    return attribute == 3 || attribute == 4 ? set(of->transposed[attribute - 3], value, bytes) : REFUSED;
}
int cublasLtMatmulDescDestroy(Descriptor* of) { return delete of, SUCCESS; }

int cublasLtMatmulPreferenceCreate(Preference** out) { return *out = new Preference, SUCCESS; }
int cublasLtMatmulPreferenceSetAttribute(Preference* of, int attribute, const void* value, size_t bytes) {
    uint32_t alignment = 0;
    if (attribute == 1) return set(of->workspace, value, bytes);
    if (attribute == 3) return set(of->reductions, value, bytes);
    if (attribute < 5 || attribute > 8 || set(alignment, value, bytes) != SUCCESS) return REFUSED;
    of->alignment = std::min(of->alignment, alignment);
    return alignment >= 4 && alignment <= 256 ? SUCCESS : REFUSED;
}
int cublasLtMatmulPreferenceDestroy(Preference* of) { return delete of, SUCCESS; }

int cublasLtMatmulAlgoGetHeuristic(
    void*, Descriptor* of, Layout* a, Layout* b, Layout* c, Layout* out, Preference* by, int, Choice* choice, int* count
) {
    // As if tensor cores took no rows but of 16 bytes.
    *count = of->compute == F32 || by->alignment >= 16;
    // Ours asks for one run.
    return c == out && out->batch == 1 && by->workspace >= WORKSPACE ? chosen(of, a, b, out, choice) : REFUSED;
}
int cublasLtMatmulAlgoCheck(
    void*, Descriptor* of, Layout* a, Layout* b, Layout*, Layout* out, const uint64_t* algorithm, Choice* choice
) {
    return *algorithm == ALGORITHM ? chosen(of, a, b, out, choice) : REFUSED;
}
int cublasLtMatmul(
    void*, Descriptor* of, const float* alpha, const float* x, Layout* a, const float* y, Layout* b, const float* beta,
    const float* from, Layout* c, float* to, Layout* out, const uint64_t* algorithm, void* workspace, size_t bytes, void*
) {
    Choice choice;
    bool good = *alpha == 1.0f && *beta == 0.0f && from == to && c == out && *algorithm == ALGORITHM && workspace;
    if (!good || chosen(of, a, b, out, &choice) != SUCCESS || bytes != choice.workspace) return REFUSED;
    return submit([=, of = *of, a = *a, b = *b, out = *out] { multiply_columns(of, a, b, out, x, y, to); });
}
}

// cuBLAS, as candle calls it: factors of one type, sums and alpha in f32 (in f64 for f64), beta zero.
constexpr int TYPE_F32 = 0, TYPE_BF16 = 14;

extern "C" {

int cublasCreate_v2(void** out) { return *out = &machine, SUCCESS; }
int cublasDestroy_v2(void*) { return SUCCESS; }
int cublasSetStream_v2(void*, void*) { return SUCCESS; }
int cublasGemmStridedBatchedEx(
    void*, int of_a, int of_b, int m, int n, int k, const float* alpha, const void* a, int type_a, int lda, long long to_a,
    const void* b, int type_b, int ldb, long long to_b, const float* beta, void* c, int type_c, int ldc, long long to_c,
    int batch, int compute, int
) {
    if (type_a != type_b || *beta != 0.0f || compute != F32) return REFUSED;
    return submit([=, factor = *alpha] {
        for (long long i = 0; i < batch; i++) {
            auto by = [&]<class T, class Out>(const T* a, const T* b, Out* c) {
                candle::multiply(of_a, of_b, m, n, k, a + i * to_a, lda, b + i * to_b, ldb, c + i * to_c, ldc, factor);
            };
            using candle::Brain;
            if (type_a == TYPE_F32 && type_c == TYPE_F32) {
                by(static_cast<const float*>(a), static_cast<const float*>(b), static_cast<float*>(c));
            } else if (type_a == TYPE_BF16 && type_c == TYPE_F32) {
                by(static_cast<const Brain*>(a), static_cast<const Brain*>(b), static_cast<float*>(c));
            } else {
                emulation::fail("a product of types that it does not know");
            }
        }
    });
}
int cublasGemmEx(
    void* handle, int of_a, int of_b, int m, int n, int k, const float* alpha, const void* a, int type_a, int lda,
    const void* b, int type_b, int ldb, const float* beta, void* c, int type_c, int ldc, int compute, int how
) {
    return cublasGemmStridedBatchedEx(
        handle, of_a, of_b, m, n, k, alpha, a, type_a, lda, 0, b, type_b, ldb, 0, beta, c, type_c, ldc, 0, 1, compute, how
    );
}
int cublasDgemmStridedBatched(
    void*, int of_a, int of_b, int m, int n, int k, const double* alpha, const double* a, int lda, long long to_a,
    const double* b, int ldb, long long to_b, const double* beta, double* c, int ldc, long long to_c, int batch
) {
    if (*beta != 0.0) return REFUSED;
    return submit([=, factor = *alpha] {
        for (long long i = 0; i < batch; i++) {
            candle::multiply(of_a, of_b, m, n, k, a + i * to_a, lda, b + i * to_b, ldb, c + i * to_c, ldc, factor);
        }
    });
}

int curandCreateGenerator(void** out, int) { return *out = &machine, SUCCESS; }
int curandDestroyGenerator(void*) { return SUCCESS; }
int curandSetPseudoRandomGeneratorSeed(void*, unsigned long long) { return SUCCESS; }
int curandSetStream(void*, void*) { return SUCCESS; }
}
