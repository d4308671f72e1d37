//! taskvec-kernels
