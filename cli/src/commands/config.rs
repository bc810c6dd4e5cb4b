//! `config show`.

use serde::Serialize;

use super::{Answer, FINE};
use crate::config::Setting;
use crate::output;
use crate::session::Session;

#[derive(Serialize)]
struct View<'a> {
    settings: &'a [Setting],
}

/// What is set, and where each value comes from.
pub(crate) fn show(session: &Session) -> Answer {
    let settings = &session.settings;
    if session.json {
        output::print_json(&View { settings })?;
        return Ok(FINE);
    }
    let row = |setting: &Setting| {
        let value = setting.value.clone().unwrap_or_else(|| "–".into());
        vec![setting.name.clone(), value, setting.from.clone()]
    };
    let rows: Vec<_> = settings.iter().map(row).collect();
    output::print(&output::table("", &rows))?;
    Ok(FINE)
}
