//! What Refract says on stderr: one line an event, text or JSON.
//!
//! Takes `tracing` events; makes lines. From the end of the start on they are written by a thread of
//! their own through a bounded queue, so that a stalled terminal or pipe never holds up an
//! enforcement; when the queue is full lines are dropped. Before that there is no other thread, since
//! the sandbox is entered by one. Under journald the time is left out and each line carries its priority.

use std::{
    env, fmt,
    io::{self, IsTerminal, Write},
    sync::{Arc, OnceLock},
};

use tracing::{Level, Metadata};
use tracing_appender::non_blocking::{NonBlocking, WorkerGuard};
use tracing_subscriber::{
    fmt::{MakeWriter, format::Writer, time::FormatTime},
    layer::SubscriberExt,
    util::SubscriberInitExt,
};

/// How lines on stderr are written (`--log.format`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// What is said on stderr; what is queued is written before this is gone.
#[derive(Debug)]
pub struct Telemetry {
    queue: Arc<OnceLock<NonBlocking>>,
    guard: Option<WorkerGuard>,
}

impl Telemetry {
    /// Starts saying things on stderr, each at once.
    #[must_use]
    pub fn start(format: LogFormat) -> Self {
        let queue = Arc::default();
        begin(format, Arc::clone(&queue));
        Self { queue, guard: None }
    }

    /// From now on a thread says them, and nobody waits for it.
    pub fn queue(&mut self) {
        let (writer, guard) = tracing_appender::non_blocking(io::stderr());
        if self.queue.set(writer).is_ok() {
            self.guard = Some(guard);
        }
    }
}

fn begin(format: LogFormat, queue: Arc<OnceLock<NonBlocking>>) {
    let journald = env::var_os("JOURNAL_STREAM").is_some() && !io::stderr().is_terminal();
    let writer = Stderr { queue, prioritised: journald && format == LogFormat::Text };
    let layer = tracing_subscriber::fmt::layer()
        .with_writer(writer)
        .with_target(false)
        .with_ansi(io::stderr().is_terminal());
    let registry =
        tracing_subscriber::registry().with(tracing_subscriber::filter::LevelFilter::INFO);
    match format {
        LogFormat::Json => {
            registry.with(layer.json().flatten_event(true).with_timer(UtcTime)).init();
        }
        LogFormat::Text if journald => registry.with(layer.without_time()).init(),
        LogFormat::Text => registry.with(layer.with_timer(UtcTime)).init(),
    }
}

/// UTC with microseconds, as in the block log.
struct UtcTime;

impl FormatTime for UtcTime {
    fn format_time(&self, out: &mut Writer<'_>) -> fmt::Result {
        write!(out, "{:.6}", jiff::Timestamp::now())
    }
}

struct Stderr {
    queue: Arc<OnceLock<NonBlocking>>,
    prioritised: bool,
}

impl<'a> MakeWriter<'a> for Stderr {
    type Writer = Line;

    fn make_writer(&'a self) -> Line {
        Line { queue: self.queue.get().cloned(), prefix: "" }
    }

    fn make_writer_for(&'a self, event: &Metadata<'_>) -> Line {
        let prefix = match *event.level() {
            _ if !self.prioritised => "",
            // sd-daemon(3): the syslog priority in angle brackets.
            Level::ERROR => "<3>",
            Level::WARN => "<4>",
            _ => "<6>",
        };
        Line { queue: self.queue.get().cloned(), prefix }
    }
}

/// One line on its way out; the formatter hands it over whole.
struct Line {
    queue: Option<NonBlocking>,
    prefix: &'static str,
}

impl Line {
    fn say(&mut self, bytes: &[u8]) -> io::Result<()> {
        match &mut self.queue {
            Some(queue) => queue.write_all(bytes),
            None => io::stderr().write_all(bytes),
        }
    }
}

impl Write for Line {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.prefix.is_empty() {
            self.say(bytes)?;
        } else {
            let mut line = self.prefix.as_bytes().to_vec();
            line.extend_from_slice(bytes);
            self.say(&line)?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
