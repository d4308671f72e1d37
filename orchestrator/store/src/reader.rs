//! Users' own queries.
//!
//! Whatever they ask, they ask as the role `taskvec_reader` in a read-only transaction, so the text is never judged for
//! safety. The database itself turns rows into JSON, and a cursor hands them out, so that an answer of any size takes
//! little memory on both sides.

use crate::{
    error::{SqlError, StoreError},
    sql_text, store,
};
use sqlx::{
    AssertSqlSafe, Column, Executor, PgPool, Postgres, Row, SqlSafeStr, Statement, Transaction,
    postgres::{PgDatabaseError, PgErrorPosition, PgPoolOptions, PgRow},
};
use std::time::Duration;

/// Rows that are fetched at first, and at most, at once.
const FETCH: (usize, usize) = (16, 2000);
/// About the size of a fetched part, in bytes: the number of rows follows from the size of those before.
const PART_BYTES: usize = 256 << 10;

/// Connections as `taskvec_reader`. Cheap to clone.
#[derive(Clone)]
pub struct Reader {
    pool: PgPool,
}

/// An answer, a part at a time. Holds a connection until it is dropped.
pub struct Rows {
    tx: Transaction<'static, Postgres>,
    columns: Vec<String>,
    /// Rows to fetch next; none at the end.
    next: Option<usize>,
}

impl Reader {
    /// `url` is what [`Store::ensure_reader`](crate::Store::ensure_reader) gives.
    pub async fn connect(url: &str, max_connections: u32) -> Result<Self, StoreError> {
        let pool = PgPoolOptions::new()
            .max_connections(max_connections)
            .acquire_timeout(Duration::from_secs(10))
            .connect_with(store::options(url)?)
            .await?;
        Ok(Self { pool })
    }

    /// Starts one query (`SELECT`, `WITH`, `VALUES`, `TABLE`). [`StoreError::Sql`] says what is wrong with it.
    pub async fn sql(&self, query: &str) -> Result<Rows, StoreError> {
        let mut tx = self.pool.begin_with("BEGIN TRANSACTION READ ONLY").await?;
        // What an earlier query may have set for the session does not reach this one.
        sqlx::raw_sql("SET LOCAL statement_timeout = '120s'; SET LOCAL cursor_tuple_fraction = 1")
            .execute(&mut *tx)
            .await?;
        let columns = describe(&mut tx, query).await?;
        let names: Vec<String> = (1..=columns.len()).map(|i| format!("c{i}")).collect();
        let values: Vec<String> = names.iter().map(|c| format!("pg_catalog.to_json(q.{c})::pg_catalog.text")).collect();
        let head = format!("DECLARE answer NO SCROLL CURSOR FOR SELECT {} FROM (", values.join(", "));
        let statement = format!("{head}{}\n) AS q({})", sql_text::without_terminator(query), names.join(", "));
        let offset = head.chars().count();
        // Prepared, so that it is one statement, whatever the text is.
        sqlx::query(AssertSqlSafe(statement)).persistent(false).execute(&mut *tx).await.map_err(|e| only(e, offset))?;
        Ok(Rows { tx, columns, next: Some(FETCH.0) })
    }
}

impl Rows {
    /// Their names, in order; a name may occur more than once.
    pub fn columns(&self) -> &[String] {
        &self.columns
    }

    /// The next rows, each a JSON array of the values in order; none at the end.
    pub async fn next(&mut self) -> Result<Option<Vec<String>>, StoreError> {
        let Some(count) = self.next else { return Ok(None) };
        let rows = sqlx::query(AssertSqlSafe(format!("FETCH {count} FROM answer")))
            .persistent(false)
            .fetch_all(&mut *self.tx)
            .await
            .map_err(|e| user_error(e, None))?;
        let part: Vec<String> = rows.iter().map(array).collect::<Result<_, _>>()?;
        let bytes: usize = part.iter().map(String::len).sum();
        let fitting = PART_BYTES * count / bytes.max(1);
        self.next = (part.len() == count).then(|| fitting.clamp(1, FETCH.1));
        Ok(Some(part).filter(|part| !part.is_empty()))
    }
}

/// The names of the columns of the user's query, as it stands: what is wrong with it is said in terms of it.
async fn describe(tx: &mut Transaction<'static, Postgres>, query: &str) -> Result<Vec<String>, StoreError> {
    let statement =
        tx.prepare(AssertSqlSafe(query.to_owned()).into_sql_str()).await.map_err(|e| user_error(e, Some(0)))?;
    if statement.columns().is_empty() {
        return Err(only_queries());
    }
    if statement.parameters().is_some_and(|p| p.left().is_none_or(|types| !types.is_empty())) {
        return Err(plain("queries take no parameters: write the value where $1 stands"));
    }
    Ok(statement.columns().iter().map(|c| c.name().to_owned()).collect())
}

fn array(row: &PgRow) -> Result<String, StoreError> {
    let mut out = String::from("[");
    for i in 0..row.len() {
        if i > 0 {
            out.push(',');
        }
        out.push_str(row.try_get::<Option<&str>, _>(i)?.unwrap_or("null"));
    }
    out.push(']');
    Ok(out)
}

/// A syntax error that the query alone did not have: it is a statement of another kind.
fn only(error: sqlx::Error, offset: usize) -> StoreError {
    match error.as_database_error().and_then(|e| e.code()).as_deref() {
        Some("42601") => only_queries(),
        _ => user_error(error, Some(offset)),
    }
}

fn only_queries() -> StoreError {
    plain("only queries can be run here: SELECT, WITH … SELECT, VALUES or TABLE")
}

fn plain(message: &str) -> StoreError {
    StoreError::Sql(SqlError { message: message.to_owned(), detail: None, hint: None, code: None, position: None })
}

/// What the database says about the user's query, which starts behind `offset` characters of the statement, where it is
/// part of the statement.
fn user_error(error: sqlx::Error, offset: Option<usize>) -> StoreError {
    let error = StoreError::from(error);
    let StoreError::Database(sqlx::Error::Database(inner)) = &error else { return error };
    let Some(e) = inner.try_downcast_ref::<PgDatabaseError>() else { return error };
    let position = match (e.position(), offset) {
        (Some(PgErrorPosition::Original(at)), Some(offset)) => at.checked_sub(offset).filter(|at| *at > 0),
        _ => None,
    };
    StoreError::Sql(SqlError {
        message: e.message().to_owned(),
        detail: e.detail().map(str::to_owned),
        hint: e.hint().map(str::to_owned),
        code: Some(e.code().to_owned()),
        position,
    })
}
