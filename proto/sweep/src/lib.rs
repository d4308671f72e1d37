//! taskvec-sweep
