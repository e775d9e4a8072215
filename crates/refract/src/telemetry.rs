//! What Refract says on stderr: one line an event, text or JSON.
//!
//! Takes `tracing` events; makes lines. They are written by a thread of their own through a bounded
//! queue, so that a stalled terminal or pipe never holds up an enforcement; when the queue is full
//! lines are dropped. Under journald the time is left out and each line carries its priority.

use std::{
    env, fmt,
    io::{self, IsTerminal, Write},
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

/// Starts saying things on stderr; what is queued is written before the guard is gone.
pub fn start(format: LogFormat) -> WorkerGuard {
    let (writer, guard) = tracing_appender::non_blocking(io::stderr());
    let journald = env::var_os("JOURNAL_STREAM").is_some() && !io::stderr().is_terminal();
    let writer = Stderr { writer, prioritised: journald && format == LogFormat::Text };
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
    guard
}

/// UTC with microseconds, as in the block log.
struct UtcTime;

impl FormatTime for UtcTime {
    fn format_time(&self, out: &mut Writer<'_>) -> fmt::Result {
        write!(out, "{:.6}", jiff::Timestamp::now())
    }
}

struct Stderr {
    writer: NonBlocking,
    prioritised: bool,
}

impl<'a> MakeWriter<'a> for Stderr {
    type Writer = Line;

    fn make_writer(&'a self) -> Line {
        Line { writer: self.writer.clone(), prefix: "" }
    }

    fn make_writer_for(&'a self, event: &Metadata<'_>) -> Line {
        let prefix = match *event.level() {
            _ if !self.prioritised => "",
            // sd-daemon(3): the syslog priority in angle brackets.
            Level::ERROR => "<3>",
            Level::WARN => "<4>",
            _ => "<6>",
        };
        Line { writer: self.writer.clone(), prefix }
    }
}

/// One line on its way out; the formatter hands it over whole.
struct Line {
    writer: NonBlocking,
    prefix: &'static str,
}

impl Write for Line {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.prefix.is_empty() {
            return self.writer.write(bytes);
        }
        let mut line = self.prefix.as_bytes().to_vec();
        line.extend_from_slice(bytes);
        self.writer.write_all(&line)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.writer.flush()
    }
}
