//! The role under which users query: it can read the views of schema `results`, and nothing else.
//!
//! The database itself keeps it from writing. It owns nothing, may create nothing (no temporary tables either), has no
//! right on the tables behind the views, and none to the built-in functions with effects beyond a transaction: advisory
//! locks (one of them is the lead), large objects, notifications, the signals to other sessions. Read-only transactions
//! are its default on top of that.

use crate::{Store, error::StoreError};
use sqlx::{
    PgConnection,
    postgres::{PgConnectOptions, PgSslMode},
};

/// Its name.
pub const READER: &str = "taskvec_reader";

/// Functions that everyone may call and that do something. Only a superuser can take them from everyone; where the
/// owner is none, the reader keeps them, and can disturb but neither read nor change anything.
const EFFECTS: &str = r"
    DO $$
    DECLARE f regprocedure;
    BEGIN
        IF NOT (SELECT rolsuper FROM pg_roles WHERE rolname = current_user) THEN RETURN; END IF;
        FOR f IN
            SELECT p.oid FROM pg_proc p
            WHERE p.pronamespace = 'pg_catalog'::regnamespace
                AND (p.proname ~ '^pg_(try_)?advisory_' OR p.proname ~ '^lo_' OR p.proname IN
                    ('lowrite', 'loread', 'pg_notify', 'pg_logical_emit_message', 'pg_export_snapshot',
                     'pg_cancel_backend', 'pg_terminate_backend'))
                AND has_function_privilege('taskvec_reader', p.oid, 'EXECUTE')
        LOOP
            EXECUTE format('REVOKE EXECUTE ON FUNCTION %s FROM PUBLIC', f);
        END LOOP;
        ALTER ROLE taskvec_reader SET temp_file_limit = '20GB';
    END $$";

const RIGHTS: &[&str] = &[
    "ALTER ROLE taskvec_reader SET default_transaction_read_only = on",
    "ALTER ROLE taskvec_reader SET statement_timeout = '120s'",
    "ALTER ROLE taskvec_reader SET idle_in_transaction_session_timeout = '600s'",
    "REVOKE CREATE ON SCHEMA public FROM PUBLIC",
    "REVOKE ALL ON SCHEMA taskvec FROM PUBLIC",
    "GRANT USAGE ON SCHEMA results TO taskvec_reader",
    "GRANT SELECT ON ALL TABLES IN SCHEMA results TO taskvec_reader",
];

impl Store {
    /// Creates the role or brings it up to date, sets its password, and gives the connection string under which users
    /// reach the database as it does itself. Needs a superuser or the right CREATEROLE.
    pub async fn ensure_reader(&self, password: &str) -> Result<String, StoreError> {
        let mut tx = self.pool.begin().await?;
        ensure(&mut tx, password).await.map_err(refused)?;
        tx.commit().await?;
        Ok(url(&self.pool.connect_options(), password))
    }
}

async fn ensure(connection: &mut PgConnection, password: &str) -> Result<(), sqlx::Error> {
    let exists: bool = sqlx::query_scalar("SELECT EXISTS (SELECT FROM pg_roles WHERE rolname = $1)")
        .bind(READER)
        .fetch_one(&mut *connection)
        .await?;
    let verb = if exists { "ALTER" } else { "CREATE" };
    // Utility statements take no parameters; the database itself quotes.
    let (role, revoke, grant): (String, String, String) = sqlx::query_as(
        "SELECT format('%s ROLE taskvec_reader LOGIN NOINHERIT NOCREATEDB NOCREATEROLE PASSWORD %L', $1, $2),
                format('REVOKE TEMPORARY, CREATE ON DATABASE %I FROM PUBLIC', current_database()),
                format('GRANT CONNECT ON DATABASE %I TO taskvec_reader', current_database())",
    )
    .bind(verb)
    .bind(password)
    .fetch_one(&mut *connection)
    .await?;
    for statement in [role, revoke, grant] {
        sqlx::raw_sql(sqlx::AssertSqlSafe(statement)).execute(&mut *connection).await?;
    }
    for statement in RIGHTS.iter().chain([&EFFECTS]) {
        sqlx::raw_sql(*statement).execute(&mut *connection).await?;
    }
    Ok(())
}

fn refused(error: sqlx::Error) -> StoreError {
    match error.as_database_error() {
        Some(e) if e.code().as_deref() == Some("42501") => StoreError::ReaderRole(e.message().to_owned()),
        _ => error.into(),
    }
}

/// The owner's connection string with the reader's name in it.
fn url(owner: &PgConnectOptions, password: &str) -> String {
    let host = match owner.get_socket() {
        Some(folder) => encoded(&folder.to_string_lossy()),
        // Percent-encoding would break an IPv6 address in brackets.
        None => owner.get_host().to_owned(),
    };
    let database = owner.get_database().unwrap_or(owner.get_username());
    let (password, database, port) = (encoded(password), encoded(database), owner.get_port());
    format!("postgres://{READER}:{password}@{host}:{port}/{database}{}", encryption(owner.get_ssl_mode()))
}

/// What the owner insists on, the reader does too; the default says nothing.
fn encryption(mode: PgSslMode) -> &'static str {
    match mode {
        PgSslMode::Disable => "?sslmode=disable",
        PgSslMode::Allow => "?sslmode=allow",
        PgSslMode::Prefer => "",
        PgSslMode::Require => "?sslmode=require",
        PgSslMode::VerifyCa => "?sslmode=verify-ca",
        PgSslMode::VerifyFull => "?sslmode=verify-full",
    }
}

fn encoded(text: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_.~".contains(&b);
    text.bytes().map(|b| if plain(b) { char::from(b).to_string() } else { format!("%{b:02X}") }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::str::FromStr;

    #[test]
    fn the_readers_url_leads_to_the_same_database() {
        for (owner, reader) in [
            ("postgres://me:secret@db.example:6543/lab", "postgres://taskvec_reader:a%2Fb@db.example:6543/lab"),
            ("postgres://me@%2Ftmp%2Fpg:5433/lab", "postgres://taskvec_reader:a%2Fb@%2Ftmp%2Fpg:5433/lab"),
            ("postgres://me@db/lab?sslmode=require", "postgres://taskvec_reader:a%2Fb@db:5432/lab?sslmode=require"),
        ] {
            let options = PgConnectOptions::from_str(owner).expect("valid");
            assert_eq!(url(&options, "a/b"), reader);
            let back = PgConnectOptions::from_str(reader).expect("valid");
            assert_eq!((back.get_host(), back.get_socket()), (options.get_host(), options.get_socket()));
        }
    }
}
