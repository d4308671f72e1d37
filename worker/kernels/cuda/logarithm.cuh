// The logarithm of worker/science/src/rng/normal.rs, bit for bit: made of operations that every IEEE machine rounds
// alike, written as the intrinsics that are never contracted. (libm's and libdevice's differ in their last bits.)
#ifndef TASKVEC_LOGARITHM
#define TASKVEC_LOGARITHM

// Natural logarithm of a positive normal number: ln(2^e m) = e ln 2 + 2 artanh((m - 1) / (m + 1)).
__device__ inline double exact_ln(double x) {
    u64 bits = (u64)__double_as_longlong(x);
    int exponent = (int)(bits >> 52) - 1023;
    double m = __longlong_as_double((i64)((bits & ((1ull << 52) - 1)) | 1023ull << 52));
    if (m > 1.4142135623730951) {
        m = __dmul_rn(m, 0.5);
        exponent += 1;
    }
    double f = __ddiv_rn(__dsub_rn(m, 1.0), __dadd_rn(m, 1.0)), z = __dmul_rn(f, f), tail = 0.0;
    const double SERIES[10] = {2.0 / 21.0, 2.0 / 19.0, 2.0 / 17.0, 2.0 / 15.0, 2.0 / 13.0,
                               2.0 / 11.0, 2.0 / 9.0,  2.0 / 7.0,  2.0 / 5.0,  2.0 / 3.0};
    for (int i = 0; i < 10; i++) tail = __dmul_rn(__dadd_rn(tail, SERIES[i]), z);
    double e = exponent;
    double low = __dadd_rn(__dmul_rn(e, 1.9082149292705877e-10), __dmul_rn(f, tail));
    return __dadd_rn(__dadd_rn(low, __dmul_rn(2.0, f)), __dmul_rn(e, 6.931471803691238e-1));
}

#endif
