//! taskvec-store
