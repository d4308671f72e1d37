//! taskvec-agent
