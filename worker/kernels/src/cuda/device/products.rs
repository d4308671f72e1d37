//! Matrix products by cuBLASLt.
//!
//! A run shall have the same bytes alone and among others. So the algorithm of a product is chosen for one run, by the
//! product's sizes and the alignment that all runs have, and then multiplies all of them in one launch; where it cannot do
//! that, it multiplies one after the other. What this rests on is that an algorithm of cuBLASLt sums each matrix of a batch in
//! the order in which it sums a single one. NVIDIA says so of no particular algorithm; the tests of stacked runs ask the GPU.

use super::{Buffer, Device, DeviceError, Place};
use crate::{
    Precision,
    cuda::{Extent, Operand, Product, program::ALIGNMENT},
};
use cudarc::cublaslt::{
    result::{self, CublasError},
    sys::{
        self, cublasComputeType_t as Compute, cublasLtMatmulAlgo_t as Algorithm,
        cublasLtMatmulDescAttributes_t as OfProduct, cublasLtMatmulPreferenceAttributes_t as OfChoice,
        cublasLtMatrixLayoutAttribute_t as OfLayout, cublasLtReductionScheme_t as Reduction, cudaDataType_t as Type,
    },
};
use std::{ffi::c_void, mem::MaybeUninit, ptr::from_ref, rc::Rc};

/// Bytes that an algorithm may use beside the matrices, of one run.
const WORKSPACE: usize = 32 << 20;

/// cuBLASLt on a device.
pub(super) struct Library {
    handle: sys::cublasLtHandle_t,
}

/// A product that is ready to be launched.
pub(super) struct Planned {
    library: Rc<Library>,
    descriptor: Descriptor,
    /// As the library has it: the right factor, the left one, the result.
    matrices: [Matrix; 3],
    algorithm: Algorithm,
    /// How often it is launched: once, or once for each run.
    launches: usize,
    /// Bytes that a launch needs beside the matrices.
    workspace: usize,
}

struct Matrix {
    layout: Layout,
    place: Place,
    /// Elements from run to run.
    stride: usize,
}

impl Library {
    pub fn new(device: &Device) -> Result<Self, DeviceError> {
        if !is_there!(sys) {
            return Err(DeviceError::NoProducts);
        }
        device.context.bind_to_thread()?;
        let handle = result::create_handle().map_err(|error| DeviceError::Products(error.to_string()))?;
        Ok(Self { handle })
    }

    /// Chooses how to multiply.
    ///
    /// # Errors
    /// Nothing that the library has can multiply such matrices.
    pub fn plan(self: &Rc<Self>, product: &Product<Place>) -> Result<Planned, DeviceError> {
        let of = product.extent();
        self.planned(product).map_err(|error| DeviceError::Product { of, reason: error.to_string() })
    }

    fn planned(self: &Rc<Self>, product: &Product<Place>) -> Result<Planned, CublasError> {
        let Extent { m, n, k, runs, precision } = product.extent();
        let [left, right] = product.factors();
        // Columns come first there, so that it sees every matrix transposed: outᵀ = rightᵀ · leftᵀ.
        let matrices = [Matrix::new(right, k, n)?, Matrix::new(left, m, k)?, Matrix::new(product.out(), m, n)?];
        let choose = |precision| {
            let descriptor = Descriptor::new(precision, [right.transposed, left.transposed])?;
            Ok((self.chosen(&descriptor, &matrices)?, descriptor))
        };
        // Tensor cores do not take every alignment.
        let exact = |error| if precision == Precision::F32 { Err(error) } else { choose(Precision::F32) };
        let (algorithm, descriptor) = choose(precision).or_else(exact)?;
        let mut planned = Planned { library: self.clone(), descriptor, matrices, algorithm, launches: 1, workspace: 0 };
        planned.workspace = match planned.needed(runs) {
            Ok(bytes) if bytes <= WORKSPACE * runs => bytes,
            _ => {
                planned.launches = runs;
                planned.needed(1)?
            }
        };
        Ok(planned)
    }

    /// The algorithm for one run.
    fn chosen(&self, descriptor: &Descriptor, matrices: &[Matrix; 3]) -> Result<Algorithm, CublasError> {
        let choice = Choice::new()?;
        choice.set(OfChoice::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &WORKSPACE)?;
        // Partial sums in an order of their own, not as threads come by.
        let reductions =
            Reduction::CUBLASLT_REDUCTION_SCHEME_NONE as u32 | Reduction::CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE as u32;
        choice.set(OfChoice::CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, &reductions)?;
        let [a, b, out] = matrices.each_ref().map(Matrix::alignment);
        for (attribute, alignment) in [
            (OfChoice::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, a),
            (OfChoice::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, b),
            (OfChoice::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, out),
            (OfChoice::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, out),
        ] {
            choice.set(attribute, &alignment)?;
        }
        let [a, b, out] = matrices.each_ref().map(|matrix| matrix.layout.0);
        // SAFETY: all of these live.
        let best = unsafe { result::get_matmul_algo_heuristic(self.handle, descriptor.0, a, b, out, out, choice.0) }?;
        Ok(best.algo)
    }
}

impl Planned {
    pub fn workspace(&self) -> usize {
        self.workspace
    }

    /// Makes launches of so many runs, if the algorithm can; the bytes it then needs beside the matrices.
    fn needed(&self, runs: usize) -> Result<usize, CublasError> {
        let runs = i32::try_from(runs).expect("products have fewer runs");
        for matrix in &self.matrices {
            matrix.layout.set(OfLayout::CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, &runs)?;
        }
        let [a, b, out] = self.matrices.each_ref().map(|matrix| matrix.layout.0);
        let mut found = MaybeUninit::uninit();
        // SAFETY: all of these live, and `found` is written where the call succeeds.
        let found = unsafe {
            let (handle, algorithm) = (self.library.handle, &raw const self.algorithm);
            sys::cublasLtMatmulAlgoCheck(handle, self.descriptor.0, a, b, out, out, algorithm, found.as_mut_ptr())
                .result()?;
            found.assume_init()
        };
        found.state.result()?;
        Ok(found.workspaceSize)
    }

    /// Puts the product behind what was launched before; does not wait.
    ///
    /// # Safety
    /// The places live until the product is done, `workspace` too, and it has as many bytes as [`Self::workspace`] says.
    ///
    /// # Errors
    /// The library's.
    pub unsafe fn launch(&self, device: &Device, workspace: &Buffer) -> Result<(), DeviceError> {
        let (one, zero) = (1.0f32, 0.0f32);
        for run in 0..self.launches {
            let [a, b, out] = self.matrices.each_ref().map(|matrix| matrix.of(run) as *mut c_void);
            let [of_a, of_b, of_out] = self.matrices.each_ref().map(|matrix| matrix.layout.0);
            // SAFETY: layouts and descriptor live, and describe parts of the places, whose lengths were checked when the
            // product was made; the rest the caller promises.
            unsafe {
                result::matmul(
                    self.library.handle,
                    self.descriptor.0,
                    from_ref(&one).cast(),
                    from_ref(&zero).cast(),
                    a,
                    of_a,
                    b,
                    of_b,
                    out,
                    of_out,
                    out,
                    of_out,
                    &raw const self.algorithm,
                    workspace.place.pointer as *mut c_void,
                    self.workspace,
                    device.stream.cu_stream().cast(),
                )
            }
            .map_err(|error| DeviceError::Products(error.to_string()))?;
        }
        Ok(())
    }
}

impl Matrix {
    /// (rows, columns) of each run, or in memory its transpose; of one run for now.
    fn new(of: &Operand<Place>, rows: usize, columns: usize) -> Result<Self, CublasError> {
        let (rows, columns) = if of.transposed { (columns, rows) } else { (rows, columns) };
        // Its first is the one that is contiguous.
        let layout = Layout::new(columns, rows)?;
        layout.set(OfLayout::CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET, &(of.stride as i64))?;
        Ok(Self { layout, place: of.place, stride: of.stride })
    }

    /// Where a run's begins.
    fn of(&self, run: usize) -> u64 {
        self.place.pointer + (run * self.stride * size_of::<f32>()) as u64
    }

    /// Bytes that divide where the matrices of all runs begin, however many there are.
    fn alignment(&self) -> u32 {
        let bits = ALIGNMENT as u64 | self.place.pointer | (self.stride * size_of::<f32>()) as u64;
        1 << bits.trailing_zeros()
    }
}

/// What the library is told of a matrix.
struct Layout(sys::cublasLtMatrixLayout_t);

impl Layout {
    fn new(contiguous: usize, others: usize) -> Result<Self, CublasError> {
        result::create_matrix_layout(Type::CUDA_R_32F, contiguous as u64, others as u64, contiguous as i64).map(Self)
    }

    fn set<T>(&self, attribute: OfLayout, value: &T) -> Result<(), CublasError> {
        // SAFETY: the layout lives, and the library copies the value.
        unsafe { result::set_matrix_layout_attribute(self.0, attribute, from_ref(value).cast(), size_of::<T>()) }
    }
}

impl Drop for Layout {
    fn drop(&mut self) {
        // SAFETY: made by `new`, and nobody else has it. There is nobody to hear of an error.
        let _ = unsafe { result::destroy_matrix_layout(self.0) };
    }
}

/// What the library is told of a product.
struct Descriptor(sys::cublasLtMatmulDesc_t);

impl Descriptor {
    fn new(precision: Precision, transposed: [bool; 2]) -> Result<Self, CublasError> {
        let compute = match precision {
            Precision::F32 => Compute::CUBLAS_COMPUTE_32F,
            Precision::Tf32 => Compute::CUBLAS_COMPUTE_32F_FAST_TF32,
            Precision::Bf16 => Compute::CUBLAS_COMPUTE_32F_FAST_16BF,
        };
        let descriptor = Self(result::create_matmul_desc(compute, Type::CUDA_R_32F)?);
        let attributes = [OfProduct::CUBLASLT_MATMUL_DESC_TRANSA, OfProduct::CUBLASLT_MATMUL_DESC_TRANSB];
        for (attribute, transposed) in attributes.into_iter().zip(transposed) {
            // CUBLAS_OP_N and CUBLAS_OP_T.
            let operation = i32::from(transposed);
            let (value, len) = (from_ref(&operation).cast(), size_of::<i32>());
            // SAFETY: the descriptor lives, and the library copies the value.
            unsafe { result::set_matmul_desc_attribute(descriptor.0, attribute, value, len) }?;
        }
        Ok(descriptor)
    }
}

impl Drop for Descriptor {
    fn drop(&mut self) {
        // SAFETY: made by `new`, and nobody else has it. There is nobody to hear of an error.
        let _ = unsafe { result::destroy_matmul_desc(self.0) };
    }
}

/// What an algorithm is chosen by.
struct Choice(sys::cublasLtMatmulPreference_t);

impl Choice {
    fn new() -> Result<Self, CublasError> {
        result::create_matmul_pref().map(Self)
    }

    fn set<T>(&self, attribute: OfChoice, value: &T) -> Result<(), CublasError> {
        // SAFETY: the preference lives, and the library copies the value.
        unsafe { result::set_matmul_pref_attribute(self.0, attribute, from_ref(value).cast(), size_of::<T>()) }
    }
}

impl Drop for Choice {
    fn drop(&mut self) {
        // SAFETY: made by `new`, and nobody else has it. There is nobody to hear of an error.
        let _ = unsafe { result::destroy_matmul_pref(self.0) };
    }
}

impl Drop for Library {
    fn drop(&mut self) {
        // SAFETY: made by `new`; whatever was planned with it is gone, for that holds the library.
        let _ = unsafe { result::destroy_handle(self.handle) };
    }
}
