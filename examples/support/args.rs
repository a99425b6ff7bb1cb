//! The command line that every example server understands.

use std::fmt::Display;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use heirloom::Handoff;
use jiff::SignedDuration;

/// What a server is told: where the service is, and which version of it this is.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct ServerArgs<A = SocketAddr>
where
    A: FromStr<Err: Display> + Clone + Send + Sync + 'static,
{
    /// Control socket of the service: the same for all its versions, in a folder of its user alone
    #[arg(long, value_name = "PATH")]
    pub(crate) control: PathBuf,

    /// Address to serve at; a later version receives the listener and binds only an address that changed
    #[arg(long, value_name = "ADDR", value_parser = address::<A>)]
    pub(crate) listen: A,

    /// What this version calls itself, here and in its answers
    #[arg(long, value_name = "TEXT", env = "APP_VERSION")]
    pub(crate) app_version: String,

    /// How long this version may finish what it has in flight once the next one serves
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = duration)]
    pub(crate) drain: Duration,

    /// How long this version pretends to load something before it can serve
    #[arg(long, value_name = "DURATION", default_value = "0s", value_parser = duration)]
    pub(crate) warm_up: Duration,

    /// How long the version before stands by once this one serves: it takes the service back should this one die
    #[arg(long, value_name = "DURATION", default_value = "0s", value_parser = duration)]
    pub(crate) probation: Duration,

    /// File for the pid of the version that serves
    #[arg(long, value_name = "PATH")]
    pub(crate) pid_file: Option<PathBuf>,

    /// User, by number, that may take over beside this one's own; may be repeated
    #[arg(long, value_name = "UID")]
    pub(crate) allow_uid: Vec<u32>,

    /// Accept a folder of the control socket that other users can write to, such as an `emptyDir` of Kubernetes
    #[arg(long)]
    pub(crate) allow_shared_folder: bool,

    /// Accept listeners that live in another network namespace; they go deaf when that one ends
    #[arg(long)]
    pub(crate) allow_foreign_network_namespace: bool,
}

impl<A> ServerArgs<A>
where
    A: FromStr<Err: Display> + Clone + Send + Sync + 'static,
{
    /// The handoff that these arguments describe, with nothing done yet.
    pub(crate) fn handoff(&self) -> Handoff {
        let handoff = Handoff::at(&self.control).app_version(self.app_version.as_str()).drain_within(self.drain);
        let handoff = handoff.probation(self.probation);
        // Where systemd has not started this program there is nothing in the environment, and nothing changes.
        let handoff = handoff.systemd(true);
        let handoff = handoff
            .allow_shared_folder(self.allow_shared_folder)
            .allow_foreign_network_namespace(self.allow_foreign_network_namespace);
        let handoff = self.allow_uid.iter().fold(handoff, |handoff, uid| handoff.allow_uid(*uid));
        match &self.pid_file {
            Some(path) => handoff.pid_file(path),
            None => handoff,
        }
    }
}

fn address<A: FromStr<Err: Display>>(text: &str) -> Result<A, String> {
    text.parse().map_err(|error: A::Err| error.to_string())
}

/// Reads a duration as people write it: `500ms`, `5s`, `1m 30s`.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let signed: SignedDuration = text.parse().map_err(|error: jiff::Error| error.to_string())?;
    Duration::try_from(signed).map_err(|_| "a duration cannot be negative".to_owned())
}
