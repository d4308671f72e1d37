//! taskvec-server
