// What candle's own CUDA backend asks of a GPU, as far as ours needs it: its kernels, each as a plain loop over the whole
// launch, products by cuBLAS, and that there is a generator of random numbers (which nobody asks for any).
//
// Where elements lie is as candle says it: dimensions, then strides, of each operand; no table where all are contiguous.
#pragma once

#include "cuda_emulation.h"

namespace candle {

struct Brain {
    uint16_t bits;
    Brain() = default;
    Brain(float x) {
        uint32_t word = emulation::bits<uint32_t>(x);
        bits = x != x ? 0x7fc0 : static_cast<uint16_t>((word + 0x7fff + (word >> 16 & 1)) >> 16);
    }
    operator float() const { return emulation::bits<float>(uint32_t(bits) << 16); }
};

struct Half {
    uint16_t bits;
    Half() = default;
    // By multiples of the distance between neighbours, which f64 holds exactly.
    Half(float x) {
        uint16_t sign = std::signbit(x) ? 0x8000 : 0;
        int exponent = x == 0.0f || x - x != 0.0f ? -14 : std::max(std::ilogb(x), -14);
        double steps = std::nearbyint(std::ldexp(std::fabs(double(x)), 10 - exponent));
        bool whole = exponent > -14 || steps >= 1024;
        double word = whole ? steps - 1024 + 1024 * (exponent + 15) : steps;
        bits = x != x ? 0x7e00 : static_cast<uint16_t>(sign | (word < 0x7c00 ? static_cast<uint16_t>(word) : 0x7c00));
    }
    operator float() const {
        int exponent = bits >> 10 & 31, mantissa = bits & 1023;
        float size = exponent == 0    ? std::ldexp(float(mantissa), -24)
                     : exponent == 31 ? (mantissa ? std::nanf("") : std::numeric_limits<float>::infinity())
                                      : std::ldexp(float(mantissa + 1024), exponent - 25);
        return bits & 0x8000 ? -size : size;
    }
};

inline size_t strided(size_t i, size_t rank, const size_t* dims, const size_t* strides) {
    size_t at = 0;
    for (size_t d = rank; d-- > 0; i /= dims[d]) at += i % dims[d] * strides[d];
    return at;
}

// Operand `which` of a table.
inline size_t place(size_t i, size_t rank, const size_t* table, unsigned which) {
    return table ? strided(i, rank, table, table + (1 + which) * rank) : i;
}

template <class T, T of(T)>
void unary(size_t count, size_t rank, const size_t* table, const T* x, T* out) {
    for (size_t i = 0; i < count; i++) out[i] = of(x ? x[place(i, rank, table, 0)] : out[i]);
}

template <class T, T of(T, T)>
void unary_by(size_t count, size_t rank, const size_t* table, T by, const T* x, T* out) {
    for (size_t i = 0; i < count; i++) out[i] = of(x ? x[place(i, rank, table, 0)] : out[i], by);
}

template <class T, class Out, Out of(T, T)>
void binary(size_t count, size_t rank, const size_t* table, const T* x, const T* y, Out* out) {
    for (size_t i = 0; i < count; i++) out[i] = of(x[place(i, rank, table, 0)], y[place(i, rank, table, 1)]);
}

template <class T>
void affine(size_t count, size_t rank, const size_t* table, const T* x, T* out, T factor, T added) {
    for (size_t i = 0; i < count; i++) out[i] = (x ? x[place(i, rank, table, 0)] : out[i]) * factor + added;
}

template <class From, class To>
void cast(size_t count, size_t rank, const size_t* table, const From* x, To* out) {
    for (size_t i = 0; i < count; i++) out[i] = static_cast<To>(x[place(i, rank, table, 0)]);
}

template <class T>
void choose(size_t count, size_t rank, const size_t* table, const uint8_t* if_, const T* then, const T* other, T* out) {
    for (size_t i = 0; i < count; i++) {
        bool first = if_[place(i, rank, table, 0)];
        out[i] = first ? then[place(i, rank, table, 1)] : other[place(i, rank, table, 2)];
    }
}

template <class T>
void set(size_t count, size_t rank, const size_t* table, T value, T* out) {
    for (size_t i = 0; i < count; i++) out[place(i, rank, table, 0)] = value;
}

template <class T>
void copy2d(const T* from, T* to, uint32_t rows, uint32_t columns, uint32_t of_from, uint32_t of_to) {
    for (size_t i = 0; i < size_t(rows) * columns; i++) {
        to[i / columns * of_to + i % columns] = from[i / columns * of_from + i % columns];
    }
}

// The table is of the ids, which are contiguous.
template <class T>
void select(
    size_t count, size_t, const size_t*, const uint32_t* ids, const T* x, T* out, size_t, size_t from, size_t chosen,
    size_t right
) {
    for (size_t i = 0; i < count; i++) {
        size_t id = ids[i / right % chosen];
        if (id >= from) emulation::fail("index_select of what is not there");
        out[i] = x[(i / (chosen * right) * from + id) * right + i % right];
    }
}

template <class T>
void add_selected(
    const uint32_t* ids, size_t chosen, const T* x, T* out, size_t left, size_t from, size_t into, size_t right
) {
    for (size_t i = 0; i < left * right; i++) {
        for (size_t j = 0; j < chosen; j++) {
            T& sum = out[(i / right * into + ids[j]) * right + i % right];
            sum += x[(i / right * from + j) * right + i % right];
        }
    }
}

// Each block reduces `each` elements that follow each other.
template <class T, class Out, class Step>
void reduce(size_t count, size_t each, size_t rank, const size_t* table, const T* x, Out* out, Step step) {
    for (size_t block = 0; block < gridDim.x; block++) {
        for (size_t i = block * each; i < std::min(count, (block + 1) * each); i++) {
            step(x[place(i, rank, table, 0)], i == block * each, i - block * each, out[block]);
        }
    }
}

template <class T>
void sum(size_t count, size_t each, size_t rank, const size_t* table, const T* x, T* out) {
    reduce(count, each, rank, table, x, out, [](T x, bool first, size_t, T& out) { out = first ? x : out + x; });
}

// Of a few elements each, which one thread sums.
template <class T>
void sum_few(size_t sums, size_t each, size_t rank, const size_t* table, const T* x, T* out) {
    for (size_t i = 0; i < sums; i++) {
        out[i] = 0;
        for (size_t j = i * each; j < (i + 1) * each; j++) out[i] += x[place(j, rank, table, 0)];
    }
}

template <class T>
void largest(size_t count, size_t each, size_t rank, const size_t* table, const T* x, T* out) {
    reduce(count, each, rank, table, x, out, [](T x, bool first, size_t, T& out) { out = first || x > out ? x : out; });
}

template <class T>
void argmax(size_t count, size_t each, size_t rank, const size_t* table, const T* x, uint32_t* out) {
    T best{};
    reduce(count, each, rank, table, x, out, [&](T x, bool first, size_t i, uint32_t& out) {
        if (first || x > best) best = x, out = static_cast<uint32_t>(i);
    });
}

template <class T>
T gelu(T x) {
    return T(0.5) * x * (T(1) + std::tanh(T(0.7978845608028654) * (x + T(0.044715) * x * x * x)));
}
#define UNARY(name, of)                      \
    template <class T>                       \
    T name(T x) {                            \
        return static_cast<T>(of);           \
    }
UNARY(negative, -x)
UNARY(inverse, T(1) / x)
UNARY(exponential, std::exp(x))
UNARY(logarithm, std::log(x))
UNARY(sine, std::sin(x))
UNARY(cosine, std::cos(x))
UNARY(tangent, std::tanh(x))
UNARY(magnitude, std::abs(x))
UNARY(square, x * x)
UNARY(root, std::sqrt(x))
UNARY(positive, x > T(0) ? x : T(0))
UNARY(silu, x / (T(1) + std::exp(-x)))
UNARY(signum, (x > T(0)) - (x < T(0)))
UNARY(itself, x)
#undef UNARY
#define BINARY(name, Out, of)                \
    template <class T>                       \
    Out name(T x, T y) {                     \
        return static_cast<Out>(of);         \
    }
BINARY(plus, T, x + y)
BINARY(minus, T, x - y)
BINARY(times, T, x* y)
BINARY(over, T, x / y)
BINARY(greater, T, x > y ? x : y)
BINARY(smaller, T, x < y ? x : y)
BINARY(power, T, std::pow(x, y))
BINARY(equal, uint8_t, x == y)
BINARY(unequal, uint8_t, x != y)
BINARY(below, uint8_t, x < y)
BINARY(at_most, uint8_t, x <= y)
BINARY(above, uint8_t, x > y)
BINARY(at_least, uint8_t, x >= y)
#undef BINARY

// By the name of each: what makes the job of it.
template <class Make>
void list(Make make) {
    auto compared = [&]<class T>(const std::string& type) {
        make("eq_" + type, binary<T, uint8_t, equal<T>>), make("ne_" + type, binary<T, uint8_t, unequal<T>>);
        make("lt_" + type, binary<T, uint8_t, below<T>>), make("le_" + type, binary<T, uint8_t, at_most<T>>);
        make("gt_" + type, binary<T, uint8_t, above<T>>), make("ge_" + type, binary<T, uint8_t, at_least<T>>);
    };
    auto of_type = [&]<class T>(T, const std::string& type) {
        auto one = [&](const char* name, auto kernel) { make(name + type, kernel); };
        one("uneg_", unary<T, negative<T>>), one("urecip_", unary<T, inverse<T>>), one("uexp_", unary<T, exponential<T>>);
        one("ulog_", unary<T, logarithm<T>>), one("usin_", unary<T, sine<T>>), one("ucos_", unary<T, cosine<T>>);
        one("utanh_", unary<T, tangent<T>>), one("uabs_", unary<T, magnitude<T>>), one("usqr_", unary<T, square<T>>);
        one("usqrt_", unary<T, root<T>>), one("urelu_", unary<T, positive<T>>), one("usilu_", unary<T, silu<T>>);
        one("ugelu_", unary<T, gelu<T>>), one("usign_", unary<T, signum<T>>), one("ucopy_", unary<T, itself<T>>);
        one("upowf_", unary_by<T, power<T>>);
        one("badd_", binary<T, T, plus<T>>), one("bsub_", binary<T, T, minus<T>>), one("bmul_", binary<T, T, times<T>>);
        one("bdiv_", binary<T, T, over<T>>), one("bmaximum_", binary<T, T, greater<T>>);
        one("bminimum_", binary<T, T, smaller<T>>);
        compared.template operator()<T>(type);
        one("affine_", affine<T>), one("where_u8_", choose<T>), one("is_u32_", select<T>);
        one("ia_u32_", add_selected<T>), one("fast_sum_", sum<T>), one("fast_sum_small_", sum_few<T>), one("fast_max_", largest<T>);
        one("fast_argmax_", argmax<T>), one("const_set_", set<T>), one("copy2d_", copy2d<T>);
        make("cast_" + type + "_f32", cast<T, float>), make("cast_" + type + "_f64", cast<T, double>);
        make("cast_" + type + "_bf16", cast<T, Brain>), make("cast_" + type + "_f16", cast<T, Half>);
    };
    of_type(float(), "f32"), of_type(double(), "f64");
    auto moved = [&]<class T>(T, const std::string& type) {
        make("ucopy_" + type, unary<T, itself<T>>), make("copy2d_" + type, copy2d<T>);
        make("is_u32_" + type, select<T>), make("const_set_" + type, set<T>);
        make("cast_" + type + "_f32", cast<T, float>), make("cast_" + type + "_f64", cast<T, double>);
    };
    compared.template operator()<uint32_t>("u32");
    moved(Brain(), "bf16"), moved(Half(), "f16"), moved(uint32_t(), "u32"), moved(uint8_t(), "u8");
}

// One matrix of a product: columns first, or its transpose is.
template <class T, class Sum>
void multiply(
    bool of_a, bool of_b, int m, int n, int k, const T* a, int lda, const T* b, int ldb, auto* out, int ldc, Sum alpha
) {
    for (int i = 0; i < m; i++) {
        for (int j = 0; j < n; j++) {
            Sum sum = 0;
            for (int t = 0; t < k; t++) {
                Sum left = a[of_a ? t + size_t(i) * lda : i + size_t(t) * lda];
                sum += left * static_cast<Sum>(b[of_b ? j + size_t(t) * ldb : t + size_t(j) * ldb]);
            }
            out[i + size_t(j) * ldc] = static_cast<std::remove_reference_t<decltype(out[0])>>(alpha * sum);
        }
    }
}

}  // namespace candle
