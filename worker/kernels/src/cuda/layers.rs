//! Launches of the layers' operations.

use super::{Bytes, Call};

/// Activations (S, rows, width) of S runs, dense, and the distance of their parameters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stacked {
    /// S.
    pub runs: usize,
    pub rows: usize,
    pub width: usize,
    /// From the parameters of one run to those of the next, in elements.
    pub stride: usize,
}

/// Rows that one partial sum covers (`LAYER_NORM_ROWS`, `RMS_NORM_ROWS`, `GELU_ROWS` and `SUM_ROWS` of the sources).
const ROWS: usize = 32;

impl Stacked {
    fn len(self) -> usize {
        let each = self.rows * self.width;
        assert!(i32::try_from(each).is_ok(), "{each} elements of a run: at most 2^31 - 1");
        self.runs * each
    }

    /// Elements of a parameter that has `len` in each run.
    fn of_parameter(self, len: usize) -> usize {
        let before = (self.runs - 1).checked_mul(self.stride);
        before.and_then(|before| before.checked_add(len)).expect("parameters fit the address space")
    }

    /// Partial sums of each run over its rows.
    pub fn parts(self) -> usize {
        self.rows.div_ceil(ROWS)
    }
}

/// `(x − mean) / √(variance + eps) · weight + bias`.
pub fn layer_norm<B: Bytes>(of: Stacked, eps: f64, [x, weight, bias, out]: [B; 4]) -> Call<B> {
    Call::warp_each("layer_norm_forward", of.rows, of.runs)
        .floats(x, of.len())
        .floats(weight, of.of_parameter(of.width))
        .floats(bias, of.of_parameter(of.width))
        .long(of.stride)
        .float(eps as f32)
        .int(of.rows)
        .int(of.width)
        .floats(out, of.len())
}

/// What a norm is of where something is added first: `x`, the residual, and where their sum goes, which may be either of them.
fn with_residual<B: Bytes>(kernel: &'static str, of: Stacked, [x, residual, sum]: [B; 3], added: Option<B>) -> Call<B> {
    Call::warp_each(kernel, of.rows, of.runs)
        .floats(x, of.len())
        .maybe_floats(added, of.of_parameter(of.width))
        .floats(residual, of.len())
        .floats(sum, of.len())
}

/// [`layer_norm`] of `x + added + residual`, where `added` is a bias or nothing; the sum goes to `sum`, which may be `x` or
/// `residual`. The same bytes as [`bias_residual`] and [`layer_norm`], with one pass over memory less.
pub fn layer_norm_residual<B: Bytes>(
    of: Stacked,
    eps: f64,
    [x, residual, sum]: [B; 3],
    added: Option<B>,
    [weight, bias, out]: [B; 3],
) -> Call<B> {
    with_residual("layer_norm_residual", of, [x, residual, sum], added)
        .floats(weight, of.of_parameter(of.width))
        .floats(bias, of.of_parameter(of.width))
        .long(of.stride)
        .float(eps as f32)
        .int(of.rows)
        .int(of.width)
        .floats(out, of.len())
}

/// [`rms_norm`] of `x + added + residual`, as [`layer_norm_residual`].
pub fn rms_norm_residual<B: Bytes>(
    of: Stacked,
    eps: f64,
    [x, residual, sum]: [B; 3],
    added: Option<B>,
    [weight, out]: [B; 2],
) -> Call<B> {
    with_residual("rms_norm_residual", of, [x, residual, sum], added)
        .floats(weight, of.of_parameter(of.width))
        .long(of.stride)
        .float(eps as f32)
        .int(of.rows)
        .int(of.width)
        .floats(out, of.len())
}

/// Adds the gradient by `x` to `dx`; leaves the parts of those by weight and bias in `partials` (S, parts, 2·width), for
/// [`sum_partials`].
pub fn layer_norm_backward<B: Bytes>(of: Stacked, eps: f64, places: [B; 5]) -> Call<B> {
    norm_backward("layer_norm_backward", of, eps, places, 2).int(2)
}

/// The same, with the parts of the sums over the rows of `dx`, as [`column_sums`] makes them, behind the others: `partials` is
/// (S, parts, 3·width).
pub fn layer_norm_backward_sums<B: Bytes>(of: Stacked, eps: f64, places: [B; 5]) -> Call<B> {
    norm_backward("layer_norm_backward", of, eps, places, 3).int(3)
}

/// `x / √(mean(x²) + eps) · weight`.
pub fn rms_norm<B: Bytes>(of: Stacked, eps: f64, [x, weight, out]: [B; 3]) -> Call<B> {
    Call::warp_each("rms_norm_forward", of.rows, of.runs)
        .floats(x, of.len())
        .floats(weight, of.of_parameter(of.width))
        .long(of.stride)
        .float(eps as f32)
        .int(of.rows)
        .int(of.width)
        .floats(out, of.len())
}

/// Adds the gradient by `x` to `dx`; leaves the parts of that by the weight in `partials` (S, parts, width), for
/// [`sum_partials`].
pub fn rms_norm_backward<B: Bytes>(of: Stacked, eps: f64, [x, weight, grad, dx, partials]: [B; 5]) -> Call<B> {
    norm_backward("rms_norm_backward", of, eps, [x, weight, grad, dx, partials], 1)
}

/// The backward of a norm with so many `parameters`.
fn norm_backward<B: Bytes>(
    kernel: &'static str,
    of: Stacked,
    eps: f64,
    [x, weight, grad, dx, partials]: [B; 5],
    parameters: usize,
) -> Call<B> {
    Call::new(kernel, [of.parts(), of.runs, 1])
        .floats(x, of.len())
        .floats(weight, of.of_parameter(of.width))
        .long(of.stride)
        .floats(grad, of.len())
        .float(eps as f32)
        .int(of.rows)
        .int(of.width)
        .floats(dx, of.len())
        .floats(partials, of.runs * of.parts() * parameters * of.width)
}

/// `out = gelu(x + bias)`, in its tanh form, and its derivative in `slope` where there is one. `out` may be `x`.
pub fn bias_gelu<B: Bytes>(of: Stacked, [x, bias, out]: [B; 3], slope: Option<B>) -> Call<B> {
    Call::each("bias_gelu", of.rows * of.width, of.runs)
        .floats(x, of.len())
        .floats(bias, of.of_parameter(of.width))
        .long(of.stride)
        .int(of.rows)
        .int(of.width)
        .floats(out, of.len())
        .maybe_floats(slope, of.len())
}

/// `out = grad · slope`, by element. `out` may be `grad`.
pub fn gelu_backward<B: Bytes>(of: Stacked, [grad, slope, out]: [B; 3]) -> Call<B> {
    Call::each("gelu_backward", of.rows * of.width, of.runs)
        .floats(grad, of.len())
        .floats(slope, of.len())
        .int(of.rows * of.width)
        .floats(out, of.len())
}

/// The same, and the parts of the sums over the rows of `out`, as [`column_sums`] makes them, in `partials` (S, parts, width).
pub fn gelu_backward_sums<B: Bytes>(of: Stacked, [grad, slope, out, partials]: [B; 4]) -> Call<B> {
    by_columns("gelu_backward_sums", of, |call| call.floats(grad, of.len()).floats(slope, of.len()))
        .floats(out, of.len())
        .floats(partials, of.runs * of.parts() * of.width)
}

/// A thread for each column of each partial sum.
fn by_columns<B: Bytes>(kernel: &'static str, of: Stacked, inputs: impl FnOnce(Call<B>) -> Call<B>) -> Call<B> {
    let mut call = inputs(Call::each(kernel, of.width, of.runs)).int(of.rows).int(of.width);
    call.grid[2] = u32::try_from(of.parts()).ok().filter(|&parts| parts < 1 << 16).expect("at most 2^21 rows");
    call
}

/// `out = x + bias`, plus `residual` where there is one. `out` may be `x`.
pub fn bias_residual<B: Bytes>(of: Stacked, [x, bias, out]: [B; 3], residual: Option<B>) -> Call<B> {
    Call::each("bias_residual", of.rows * of.width, of.runs)
        .floats(x, of.len())
        .floats(bias, of.of_parameter(of.width))
        .long(of.stride)
        .maybe_floats(residual, of.len())
        .int(of.rows)
        .int(of.width)
        .floats(out, of.len())
}

/// `out = x + bias + positions`, with `positions` (tokens, width) for each sequence of `tokens` rows. `out` may be `x`.
pub fn bias_positions<B: Bytes>(of: Stacked, tokens: usize, [x, bias, positions, out]: [B; 4]) -> Call<B> {
    assert!(tokens > 0, "sequences have tokens");
    Call::each("bias_positions", of.rows * of.width, of.runs)
        .floats(x, of.len())
        .floats(bias, of.of_parameter(of.width))
        .floats(positions, of.of_parameter(tokens * of.width))
        .long(of.stride)
        .int(of.rows)
        .int(of.width)
        .int(tokens)
        .floats(out, of.len())
}

/// The parts of the sums over rows, in `partials` (S, parts, width), for [`sum_partials`].
pub fn column_sums<B: Bytes>(of: Stacked, [x, partials]: [B; 2]) -> Call<B> {
    by_columns("column_sums", of, |call| call.floats(x, of.len())).floats(partials, of.runs * of.parts() * of.width)
}

/// Sums `partials` (S, `of.parts()`, widths) over the parts: the first of the `outs` gets its width of columns, the second
/// those behind.
pub fn sum_partials<B: Bytes>(of: Stacked, partials: B, first: (B, usize), rest: Option<(B, usize)>) -> Call<B> {
    let (rest, behind) = rest.map_or((None, 0), |(buffer, width)| (Some(buffer), width));
    let width = first.1 + behind;
    Call::each("sum_partials", width, of.runs)
        .floats(partials, of.runs * of.parts() * width)
        .int(of.parts())
        .int(width)
        .int(first.1)
        .floats(first.0, of.of_parameter(first.1))
        .maybe_floats(rest, of.of_parameter(behind))
        .long(of.stride)
}

/// Partial sums of some columns of each run, and where they are to go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sum {
    /// Columns.
    pub width: usize,
    /// Partial sums of each run, as [`Stacked::parts`], and how far they lie apart.
    pub parts: usize,
    pub pitch: usize,
    /// Where those of the first run begin among all partial sums; the others' follow.
    pub from: usize,
    /// Where the sums go in what each run has of them.
    pub to: usize,
}

impl Sum {
    /// Words of an entry of the table that the kernel goes by.
    pub const WORDS: usize = 6;

    /// That table.
    ///
    /// # Panics
    /// Where a number does not fit 32 bits.
    pub fn table(sums: &[Self]) -> Vec<u32> {
        let mut first = 0;
        let entry = |sum: &Self| {
            let Self { width, parts, pitch, from, to } = *sum;
            let entry = [first, width, parts, pitch, from, to];
            first += width;
            entry.map(|word| u32::try_from(word).expect("partial sums are less than 2^32"))
        };
        sums.iter().flat_map(entry).collect()
    }
}

/// Sums `sums` of each run, all in `partials`, as [`sum_partials`] does it one after the other; each run's are `stride` apart
/// in `out`. `table` holds [`Sum::table`] of the same sums, and is trusted.
pub fn sum_all<B: Bytes>((runs, stride): (usize, usize), sums: &[Sum], [partials, table, out]: [B; 3]) -> Call<B> {
    let columns = sums.iter().map(|sum| sum.width).sum();
    let read = |sum: &Sum| sum.from + (runs * sum.parts).saturating_sub(1) * sum.pitch + sum.width;
    let written = |sum: &Sum| (runs - 1) * stride + sum.to + sum.width;
    let most = |of: &dyn Fn(&Sum) -> usize| sums.iter().map(of).max().unwrap_or(0);
    Call::each("sum_all_partials", columns, runs)
        .floats(partials, most(&read))
        .buffer::<u32>(table, sums.len() * Sum::WORDS)
        .int(sums.len())
        .int(columns)
        .floats(out, most(&written))
        .long(stride)
}

/// The even ones of `2·rows` rows: (2·rows, width) to (rows, width).
pub fn gather_even<B: Bytes>(rows: usize, width: usize, [from, to]: [B; 2]) -> Call<B> {
    Call::each("gather_even", rows * width, 1)
        .floats(from, 2 * rows * width)
        .int(rows)
        .int(width)
        .floats(to, rows * width)
}

/// The opposite, with zeros at the odd rows.
pub fn scatter_even<B: Bytes>(rows: usize, width: usize, [from, to]: [B; 2]) -> Call<B> {
    Call::each("scatter_even", rows * width, 1)
        .floats(from, rows * width)
        .int(rows)
        .int(width)
        .floats(to, 2 * rows * width)
}

/// Row `first` of every `every` ones: (rows · every, width) to (rows, width).
///
/// # Panics
/// Where there is no such row.
pub fn gather_every<B: Bytes>(
    rows: usize,
    width: usize,
    (first, every): (usize, usize),
    [from, to]: [B; 2],
) -> Call<B> {
    assert!(first < every, "row {first} of every {every}");
    Call::each("gather_every", rows * width, 1)
        .floats(from, rows * every * width)
        .int(rows)
        .int(every)
        .int(first)
        .int(width)
        .floats(to, rows * width)
}
