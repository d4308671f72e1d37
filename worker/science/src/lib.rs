//! taskvec-science
