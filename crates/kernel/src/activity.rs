//! What has moved on a TCP connection: payload bytes and the times of the last of them.
//!
//! Takes a `struct tcp_info` as the kernel sends it; makes an [`Activity`], with the FINs, which
//! the kernel counts as a byte each, counted off. It knows no clock: times are ages at the moment
//! of the answer.

use std::time::Duration;

use crate::{
    sock_diag_wire::TcpState,
    wire::{read_u32, read_u64},
};

// Offsets in `struct tcp_info`, linux/tcp.h. The structure only ever grows at its end.
/// `tcpi_state`, a byte.
const STATE: usize = 0;
/// `tcpi_last_data_recv`, ms.
const LAST_DATA_RECEIVED: usize = 52;
/// `tcpi_last_ack_recv`, ms.
const LAST_ACK_RECEIVED: usize = 56;
/// `tcpi_bytes_acked`; Linux 4.1.
const BYTES_ACKED: usize = 120;
/// `tcpi_bytes_received`; Linux 4.1.
const BYTES_RECEIVED: usize = 128;

/// What a client has sent on one connection and what it has acknowledged, since the handshake.
///
/// Retransmissions count once, keep-alives and bare acknowledgements not at all: the counters grow
/// only when payload moves. The kernel reads the state an instant before the counters, so a FIN
/// that comes in between is taken for one byte by that one answer. On a connection that this host
/// opened itself, its SYN is one byte of `acknowledged`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Activity {
    /// Payload bytes that came in order, whether the server has read them or not.
    pub received: u64,
    /// Payload bytes that the client acknowledged.
    pub acknowledged: u64,
    /// Since the last segment with payload came; since the handshake when none did. In steps of a
    /// kernel tick, 1 to 10 ms.
    pub last_received: Duration,
    /// Since the last acknowledgement came, which nearly every segment carries: a keep-alive's
    /// answer too. In the same steps.
    pub last_acknowledged: Duration,
}

impl Activity {
    /// Reads a `struct tcp_info`; `None` when it is too short to hold the counters.
    pub(crate) fn read(info: &[u8]) -> Option<Self> {
        let state = TcpState::from_kernel(*info.get(STATE)?);
        let age = |offset| Some(Duration::from_millis(read_u32(info, offset)?.into()));
        Some(Self {
            received: read_u64(info, BYTES_RECEIVED)?.saturating_sub(client_fin(state)),
            acknowledged: read_u64(info, BYTES_ACKED)?.saturating_sub(own_fin(state)),
            last_received: age(LAST_DATA_RECEIVED)?,
            last_acknowledged: age(LAST_ACK_RECEIVED)?,
        })
    }
}

/// The byte that a FIN of the client is among the received ones. A socket that is closed for good
/// does not say any more how it came to be so; most had one.
fn client_fin(state: Option<TcpState>) -> u64 {
    u64::from(matches!(
        state,
        Some(
            TcpState::CloseWait
                | TcpState::LastAck
                | TcpState::Closing
                | TcpState::TimeWait
                | TcpState::Close
        )
    ))
}

/// The byte that this host's own FIN is among the acknowledged ones, likewise.
fn own_fin(state: Option<TcpState>) -> u64 {
    u64::from(matches!(state, Some(TcpState::FinWait2 | TcpState::TimeWait | TcpState::Close)))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A `struct tcp_info` of 280 bytes, as Linux 6.18 sends it, with every other field set.
    pub(crate) fn tcp_info(state: u8, received: u64, acknowledged: u64) -> Vec<u8> {
        let mut info = vec![0xee; 280];
        info[0] = state;
        info[52..56].copy_from_slice(&1_004u32.to_ne_bytes());
        info[56..60].copy_from_slice(&8u32.to_ne_bytes());
        info[120..128].copy_from_slice(&acknowledged.to_ne_bytes());
        info[128..136].copy_from_slice(&received.to_ne_bytes());
        info
    }

    fn read(state: u8, received: u64, acknowledged: u64) -> (u64, u64) {
        let activity = Activity::read(&tcp_info(state, received, acknowledged)).unwrap();
        (activity.received, activity.acknowledged)
    }

    #[test]
    fn the_counters_and_the_ages_are_read_from_their_places() {
        let activity = Activity::read(&tcp_info(1, 5_000_000_000, 7)).unwrap();
        assert_eq!((activity.received, activity.acknowledged), (5_000_000_000, 7));
        assert_eq!(activity.last_received, Duration::from_millis(1_004));
        assert_eq!(activity.last_acknowledged, Duration::from_millis(8));
    }

    #[test]
    fn a_fin_is_no_payload() {
        assert_eq!(read(1, 10, 20), (10, 20), "ESTABLISHED");
        assert_eq!(read(4, 10, 20), (10, 20), "FIN_WAIT1: ours is not acknowledged yet");
        assert_eq!(read(5, 10, 21), (10, 20), "FIN_WAIT2");
        assert_eq!(read(8, 11, 20), (10, 20), "CLOSE_WAIT");
        assert_eq!(read(9, 11, 20), (10, 20), "LAST_ACK: ours is not acknowledged yet");
        assert_eq!(read(11, 11, 20), (10, 20), "CLOSING: ours is not acknowledged yet");
        assert_eq!(read(6, 11, 21), (10, 20), "TIME_WAIT");
        assert_eq!(read(7, 11, 21), (10, 20), "CLOSE, as every freed socket is");
        assert_eq!(read(7, 0, 0), (0, 0), "a reset before the first byte");
        assert_eq!(read(99, 10, 20), (10, 20), "no such state");
    }

    #[test]
    fn the_shorter_structure_of_an_older_kernel_is_nothing_rather_than_half() {
        let info = tcp_info(1, 10, 20);
        for end in 0..info.len() {
            assert_eq!(Activity::read(&info[..end]).is_some(), end >= 136, "{end} bytes");
        }
    }
}
