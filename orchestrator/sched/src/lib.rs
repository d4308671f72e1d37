//! taskvec-sched
