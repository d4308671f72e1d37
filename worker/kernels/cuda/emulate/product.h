// Matrix products of the emulation: plain loops, each element summed in the order of k, in f32.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

// A dense matrix of each run, `stride` elements apart; row-major, or its transpose is.
struct Matrix {
    float* start = nullptr;
    size_t stride = 0;
    unsigned transposed = 0;
};

// out (m, n) = left (m, k) * right (k, n).
struct Product {
    size_t m = 0, n = 0, k = 0, runs = 0;
    // 0 factors as they are, 1 TF32, 2 bf16.
    unsigned precision = 0;
    Matrix left, right, out;
};

// To the nearest number with so many bits of mantissa fewer, of two equally near ones to the even. (How tensor cores
// round to TF32 is not documented: they may cut off.)
inline float shortened(float x, unsigned bits) {
    if (bits == 0 || x - x != 0.0f) return x;
    uint32_t word;
    std::memcpy(&word, &x, sizeof word);
    uint32_t half = (1u << (bits - 1)) - 1 + (word >> bits & 1);
    word = (word + half) >> bits << bits;
    std::memcpy(&x, &word, sizeof x);
    return x;
}

// A run's factor as (rows, columns), rounded as it is multiplied.
inline std::vector<float> factor(const Matrix& of, size_t run, size_t rows, size_t columns, unsigned precision) {
    const unsigned CUT[3] = {0, 13, 16};
    const float* from = of.start + run * of.stride;
    std::vector<float> out(rows * columns);
    for (size_t r = 0; r < rows; r++) {
        for (size_t c = 0; c < columns; c++) {
            out[r * columns + c] = shortened(of.transposed ? from[c * rows + r] : from[r * columns + c], CUT[precision]);
        }
    }
    return out;
}

inline void multiply(const Product& of) {
    for (size_t run = 0; run < of.runs; run++) {
        std::vector<float> left = factor(of.left, run, of.m, of.k, of.precision);
        std::vector<float> right = factor(of.right, run, of.k, of.n, of.precision);
        float* out = of.out.start + run * of.out.stride;
        std::memset(out, 0, of.m * of.n * sizeof *out);
        for (size_t i = 0; i < of.m; i++) {
            for (size_t k = 0; k < of.k; k++) {
                float x = left[i * of.k + k];
                for (size_t j = 0; j < of.n; j++) out[i * of.n + j] += x * right[k * of.n + j];
            }
        }
    }
}
