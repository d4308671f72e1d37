//! Normals by Box-Muller in f64, with a logarithm, sine and cosine made of + − × ÷ and √ alone.
//!
//! Those five are correctly rounded on every IEEE machine, while libm's functions differ between systems, and between a
//! CPU and a GPU. Rust never contracts a × b + c into one rounding; a port must switch that off (`-fmad=false`).
//! Accuracy, measured against std: below 4e-16 relative for the logarithm, below 3e-16 absolute for sine and cosine.

use std::f64::consts::{FRAC_PI_2, SQRT_2};

/// ln 2 in two parts: the first has 33 significant bits, so that its products with an exponent are exact.
const LN_2_HIGH: f64 = 6.931_471_803_691_238e-1;
const LN_2_LOW: f64 = 1.908_214_929_270_587_7e-10;

/// Two independent standard normals from `u` in (0, 1] and `v` in [0, 1), both uniform.
#[inline]
pub fn normal_pair(u: f64, v: f64) -> [f64; 2] {
    let radius = (-2.0 * ln(u)).sqrt();
    let (sin, cos) = sin_cos_turns(v);
    [radius * cos, radius * sin]
}

/// Natural logarithm of a positive normal number: ln(2^e m) = e ln 2 + 2 artanh((m − 1) / (m + 1)), √½ ≤ m < √2.
#[inline]
fn ln(x: f64) -> f64 {
    let bits = x.to_bits();
    let mut exponent = (bits >> 52) as i32 - 1023;
    let mut m = f64::from_bits(bits & ((1 << 52) - 1) | 1023 << 52);
    if m > SQRT_2 {
        m *= 0.5;
        exponent += 1;
    }
    let f = (m - 1.0) / (m + 1.0);
    let z = f * f;
    // 2/(2n+1) z^n, n = 10 … 1; |f| ≤ 0.1716, so the first term left out is below 2e-17.
    const SERIES: [f64; 10] = [
        2.0 / 21.0,
        2.0 / 19.0,
        2.0 / 17.0,
        2.0 / 15.0,
        2.0 / 13.0,
        2.0 / 11.0,
        2.0 / 9.0,
        2.0 / 7.0,
        2.0 / 5.0,
        2.0 / 3.0,
    ];
    let tail = SERIES.iter().fold(0.0, |sum, c| (sum + c) * z);
    let e = f64::from(exponent);
    // Smallest first: what was lost in ln 2's high part, the series, then the two large terms.
    (e * LN_2_LOW + f * tail) + 2.0 * f + e * LN_2_HIGH
}

/// Sine and cosine of 2π v, for v in [0, 1). The reduction to an eighth of a turn is exact.
#[inline]
fn sin_cos_turns(v: f64) -> (f64, f64) {
    let quarters = 4.0 * v;
    let nearest = (quarters + 0.5) as u32;
    let a = (quarters - f64::from(nearest)) * FRAC_PI_2;
    let z = a * a;
    // Taylor: |a| ≤ π/4, so the first terms left out are below 1e-16 of the result.
    let (mut sin, mut cos) = (0.0, 0.0);
    for n in [8.0, 7.0, 6.0, 5.0, 4.0, 3.0, 2.0, 1.0] {
        sin = (1.0 + sin) * (-z / (2.0 * n * (2.0 * n + 1.0)));
        cos = (1.0 + cos) * (-z / (2.0 * n * (2.0 * n - 1.0)));
    }
    let (sin, cos) = (a + a * sin, 1.0 + cos);
    match nearest & 3 {
        0 => (sin, cos),
        1 => (cos, -sin),
        2 => (-sin, -cos),
        _ => (-cos, sin),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Values spread over (0, 1], with its ends.
    fn grid() -> impl Iterator<Item = f64> {
        let fine = (1..=100_000).map(|i| f64::from(i) / 100_000.0);
        let small = (0..=53).map(|e| 0.5f64.powi(e));
        fine.chain(small).chain(small_steps())
    }

    fn small_steps() -> impl Iterator<Item = f64> {
        (1..1000).map(|i| 1.0 - f64::from(i) * f64::EPSILON)
    }

    #[test]
    fn logarithm_agrees_with_std() {
        let worst = grid().map(|u| (ln(u) - u.ln()).abs() / u.ln().abs().max(f64::MIN_POSITIVE)).fold(0.0, f64::max);
        assert!(worst < 4e-16, "{worst:e}");
        assert_eq!(ln(1.0), 0.0);
    }

    #[test]
    fn sine_and_cosine_agree_with_std() {
        let error = |v: f64| {
            // Reduced before std sees it: 2π v itself carries a rounding.
            let (s, c) = sin_cos_turns(v);
            let quarters = (4.0 * v).round();
            let (bs, bc) = ((4.0 * v - quarters) * FRAC_PI_2).sin_cos();
            let (s0, c0) = [(bs, bc), (bc, -bs), (-bs, -bc), (-bc, bs)][quarters as usize % 4];
            (s - s0).abs().max((c - c0).abs())
        };
        let worst = grid().filter(|v| *v < 1.0).map(error).fold(0.0, f64::max);
        assert!(worst < 3e-16, "{worst:e}");
        assert!((sin_cos_turns(0.3).0 - (0.6 * std::f64::consts::PI).sin()).abs() < 1e-12);
    }

    #[test]
    fn the_extreme_uniforms_give_finite_normals() {
        for u in [1.0, 0.5f64.powi(53)] {
            for v in [0.0, 0.125, 0.25, 0.5, 0.75, 1.0 - f64::EPSILON] {
                let [a, b] = normal_pair(u, v);
                assert!(a.is_finite() && b.is_finite() && a.hypot(b) < 8.6, "{u} {v}: {a} {b}");
            }
        }
    }
}
