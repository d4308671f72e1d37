// Counter-based random numbers: Philox4x32-10 (Salmon et al. 2011) and Box-Muller in f64, as worker/science/src/rng
// makes them, bit for bit. The logarithm, sine and cosine are made of operations that every IEEE machine rounds alike,
// written here as the intrinsics that are never contracted; no function of libm or libdevice, which differ, is called.
#ifndef TASKVEC_PHILOX
#define TASKVEC_PHILOX

// The place of a number: the counter is (block, index, low of step, purpose and high of step), the key is the seed.
struct Stream {
    u64 seed, step;
    u32 purpose, index;
};

struct Words {
    u64 first, second;
};

__device__ inline Words philox(const Stream& of, u32 block) {
    u32 c0 = block, c1 = of.index, c2 = (u32)of.step, c3 = of.purpose << 24 | (u32)(of.step >> 32);
    u32 k0 = (u32)of.seed, k1 = (u32)(of.seed >> 32);
    for (int round = 0; round < 10; round++) {
        u64 a = 0xD2511F53ull * c0, b = 0xCD9E8D57ull * c2;
        c0 = (u32)(b >> 32) ^ c1 ^ k0;
        c1 = (u32)b;
        c2 = (u32)(a >> 32) ^ c3 ^ k1;
        c3 = (u32)a;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    return {(u64)c0 | (u64)c1 << 32, (u64)c2 | (u64)c3 << 32};
}

// Uniform in 0 to n - 1.
__device__ inline u32 below(const Stream& of, u32 block, u32 n) { return (u32)__umul64hi(philox(of, block).first, n); }

// The upper 53 bits as a number in [0, 1): exact.
__device__ inline double unit(u64 word) { return __dmul_rn((double)(word >> 11), 1.0 / 9007199254740992.0); }

struct Pair {
    double first, second;
};

// Cosine and sine of 2 pi v, for v in [0, 1).
__device__ inline Pair cos_sin_turns(double v) {
    double quarters = __dmul_rn(4.0, v);
    u32 nearest = (u32)__dadd_rn(quarters, 0.5);
    double a = __dmul_rn(__dsub_rn(quarters, (double)nearest), 1.5707963267948966), z = __dmul_rn(a, a);
    double sin = 0.0, cos = 0.0;
    for (int i = 8; i >= 1; i--) {
        double n = i;
        double odd = __dmul_rn(__dmul_rn(2.0, n), __dadd_rn(__dmul_rn(2.0, n), 1.0));
        double even = __dmul_rn(__dmul_rn(2.0, n), __dsub_rn(__dmul_rn(2.0, n), 1.0));
        sin = __dmul_rn(__dadd_rn(1.0, sin), __ddiv_rn(-z, odd));
        cos = __dmul_rn(__dadd_rn(1.0, cos), __ddiv_rn(-z, even));
    }
    sin = __dadd_rn(a, __dmul_rn(a, sin));
    cos = __dadd_rn(1.0, cos);
    switch (nearest & 3) {
    case 0: return {cos, sin};
    case 1: return {-sin, cos};
    case 2: return {-cos, -sin};
    default: return {sin, -cos};
    }
}

// Two independent standard normals.
__device__ inline Pair normal_pair(const Stream& of, u32 block) {
    Words words = philox(of, block);
    double radius = __dsqrt_rn(__dmul_rn(-2.0, exact_ln(__dsub_rn(1.0, unit(words.first)))));
    Pair turn = cos_sin_turns(unit(words.second));
    return {__dmul_rn(radius, turn.first), __dmul_rn(radius, turn.second)};
}

#endif
