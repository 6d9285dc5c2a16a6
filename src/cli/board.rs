//! `board`: what is published, as files for a web server or on a port of its own.

mod show;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use clap::builder::{PossibleValuesParser, RangedU64ValueParser, TypedValueParser};
use strum::VariantArray;
use time::macros::format_description;
use time::{OffsetDateTime, UtcOffset};
use vote_aggregator::operator::board::{
    Admin, Ballot, Board, Folder, Language, Monitor, Public, Site,
};
use vote_aggregator::platform::config::Config;
use vote_aggregator::platform::http::{self, KeepAlive, Purpose};

use self::show::{Show, Target};
use super::exit::{self, Exit, Outcome};
use super::listen::bind;
use super::signals::Signals;

/// Where operators ask, unless --admin says otherwise; with --out only if it does.
const ADMIN: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 8002);

#[derive(Args)]
#[command(after_help = "\
Examples:
  vote-aggregator board --out /var/www/board    for the web server that serves this folder
  vote-aggregator board --listen 127.0.0.1:8080 --laws laws.toml --utc-offset +01:00
  vote-aggregator board --listen 0.0.0.0:8080 --lang en --admin 127.0.0.1:8002

It makes the page in French and English, results.json, results.csv, results-fr.csv, history.json and each
final copy, of what `vote-aggregator publication` publishes, and nothing before its time: log in as a
role of the group vote_board, which can read nothing else, on the server that takes writes. In a folder
each file is replaced as a whole, and only where it changes. --listen serves the same files without TLS,
which is a task of the proxy in front of it.

While PostgreSQL is away the last files stay; after 15 s they say that they are stale. A board that is
stopped, or starts while PostgreSQL is away, cannot mark them: compare checked_at with the time. After
a start the first reading is shown whatever --min-new-votes says. SIGINT or SIGTERM stops it.")]
pub(super) struct Arguments {
    #[command(flatten)]
    target: TargetArguments,
    /// The officials' file: the election, and titles and order of its laws; ids without it
    #[arg(long, value_name = "FILE")]
    laws: Option<PathBuf>,
    /// Language of the page without a language in its address
    #[arg(long, default_value = "fr", value_parser = language())]
    lang: Language,
    /// Offset from UTC of the times on the page, e.g. +01:00
    #[arg(long, value_name = "OFFSET", default_value = "+00:00", value_parser = offset, allow_hyphen_values = true)]
    utc_offset: UtcOffset,
    /// Address of /metrics, /livez and /readyz; 127.0.0.1:8002 with --listen, none with --out
    #[arg(long, value_name = "ADDRESS")]
    admin: Option<SocketAddr>,
    /// Connections at a time with --listen; further ones wait
    #[arg(long, value_name = "N", default_value = "10000", value_parser = connections())]
    max_connections: usize,
    /// Seconds between two readings, 2 to 5
    #[arg(long, value_name = "SECONDS", default_value = "2", value_parser = every())]
    every: Duration,
    /// In counting and provisional, a law's numbers change only with so many new votes
    #[arg(long, value_name = "N", env = "BOARD_MIN_NEW_VOTES", default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..))]
    min_new_votes: u64,
}

#[derive(Args)]
#[group(required = true, multiple = false)]
struct TargetArguments {
    /// The folder that a web server serves; nothing else may write into it
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// The address to serve the files on, e.g. 127.0.0.1:8080; port 0 takes a free one
    #[arg(long, value_name = "ADDRESS")]
    listen: Option<SocketAddr>,
}

pub(super) async fn board(config: &Config, arguments: &Arguments) -> Outcome {
    let Arguments { laws, lang, utc_offset, every, min_new_votes, .. } = arguments;
    let mut signals = Signals::listen()
        .map_err(|error| exit::cannot("listen for signals", error, exit::INTERNAL))?;
    let ballot = laws.as_deref().map(Ballot::read).transpose();
    let ballot = ballot.map_err(|error| exit::cannot("use --laws", error, exit::CONFIG))?;
    let monitor = Monitor::new().map_err(|error| exit::cannot("start", error, exit::INTERNAL))?;
    let (target, serving) = arguments.target(&monitor)?;
    let show = Show {
        site: Site { ballot, language: *lang, offset: *utc_offset },
        board: Board::new(*min_new_votes),
        target,
        monitor,
        every: *every,
    };
    tokio::select! {
        ended = show.run(config) => ended,
        () = serving => Ok(0),
        _ = signals.next() => Ok(0),
    }
}

impl Arguments {
    /// Where the files go, and what serves the ports, which does not end.
    fn target(
        &self,
        monitor: &Monitor,
    ) -> Result<(Target, impl Future<Output = ()> + use<>), Exit> {
        let TargetArguments { out, listen } = &self.target;
        let admin = self.admin.or(listen.map(|_| ADMIN));
        let admin = admin.map(|address| {
            const ADMIN: Purpose = Purpose { name: "metrics and health", advice: "Set --admin" };
            bind(address, ADMIN)
        });
        let admin = admin.transpose()?;
        let connections = listen.map(|_| KeepAlive::new(self.max_connections));
        let router = Admin::router(monitor.clone(), connections.clone());
        let (target, public) = match (out, listen) {
            (Some(out), _) => {
                let folder = Folder::open(out)
                    .map_err(|error| exit::cannot("write", error, exit::CONFIG))?;
                (Target::Folder(folder), None)
            }
            (None, Some(address)) => {
                if !address.ip().is_loopback() {
                    tracing::warn!(
                        %address,
                        "the public port has no TLS: put a proxy that has it in front of it"
                    );
                }
                const BOARD: Purpose = Purpose { name: "the board", advice: "Set --listen" };
                let public = Public::default();
                (Target::Port(public.clone()), Some((bind(*address, BOARD)?, public)))
            }
            (None, None) => unreachable!("clap requires one of them"),
        };
        let metrics = monitor.metrics.clone();
        let serving = async move {
            let admin = async {
                match admin {
                    Some(listener) => http::serve_router(listener, router).await,
                    None => std::future::pending().await,
                }
            };
            let public = async {
                match (public, connections) {
                    (Some((listener, public)), Some(connections)) => {
                        let answer = move |request: &_| {
                            let answer = public.answer(request, OffsetDateTime::now_utc());
                            metrics.answered(answer.status().as_u16());
                            answer
                        };
                        connections.serve(listener, answer).await;
                    }
                    _ => std::future::pending().await,
                }
            };
            tokio::join!(admin, public);
        };
        Ok((target, serving))
    }
}

fn every() -> impl TypedValueParser<Value = Duration> {
    RangedU64ValueParser::<u64>::new().range(2..=5).map(Duration::from_secs)
}

fn connections() -> impl TypedValueParser<Value = usize> {
    RangedU64ValueParser::<usize>::new().range(1..=1_000_000)
}

fn language() -> impl TypedValueParser<Value = Language> {
    let names = Language::VARIANTS.iter().map(<&'static str>::from);
    PossibleValuesParser::new(names).map(|name| name.parse().expect("one of the languages"))
}

fn offset(text: &str) -> Result<UtcOffset, String> {
    let format = format_description!("[offset_hour sign:mandatory]:[offset_minute]");
    UtcOffset::parse(text, format).map_err(|_| "write it as +01:00 or -03:30".to_owned())
}
