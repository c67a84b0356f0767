//! `logctl group`: who reads together ([`list`]), and how far they have got ([`describe`]).

mod describe;

use clap::Subcommand;
use serde::Serialize;

use crate::context::Context;
use crate::failure::{Exit, Failure};
use crate::output::{Shown, Table, or_dash};

#[derive(Debug, Subcommand)]
pub enum Action {
    /// List groups
    #[command(visible_alias = "ls")]
    List,
    /// Show members, committed offsets and lag
    #[command(visible_alias = "desc")]
    Describe(describe::Options),
}

pub async fn run(context: &Context, action: Action) -> Result<Exit, Failure> {
    match action {
        Action::List => list(context).await,
        Action::Describe(options) => describe::run(context, options).await,
    }
}

#[derive(Debug, Serialize)]
struct Listed {
    group: String,
    state: Option<String>,
    protocol_type: Option<String>,
    coordinator: String,
}

#[derive(Debug, Serialize)]
#[serde(transparent)]
struct List(Vec<Listed>);

impl Shown for List {
    fn table(&self) -> String {
        let mut table = Table::new(&["GROUP", "STATE", "TYPE", "COORDINATOR"]);
        for group in &self.0 {
            table.row([
                group.group.clone(),
                or_dash(group.state.as_ref()),
                or_dash(group.protocol_type.as_ref()),
                group.coordinator.clone(),
            ]);
        }
        table.render()
    }
}

async fn list(context: &Context) -> Result<Exit, Failure> {
    let groups = context.connect().await?.admin().list_groups().await?;
    let listed = groups.into_iter().map(|group| Listed {
        group: group.id,
        state: some(group.state),
        protocol_type: some(group.protocol_type),
        coordinator: group.coordinator,
    });
    let list = List(listed.collect());
    context.out.show(&list)?;
    if list.0.is_empty() {
        context.out.note("no groups");
    }
    Ok(Exit::Done)
}

fn some(text: String) -> Option<String> {
    (!text.is_empty()).then_some(text)
}
