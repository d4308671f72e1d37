//! A result table on its way to the user: listings and SQL answers alike.

use serde::{Deserialize, Serialize};

/// Rows of JSON values under named columns, in order.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Table {
    pub columns: Vec<String>,
    pub rows: Vec<Vec<serde_json::Value>>,
}
