//! What enforcement acts with: the bans, the sockets, the surveyor, and whether they work here.
//!
//! Takes the bans' backend and the terms; makes [`Arms`], or says what this kernel or these privileges
//! cannot do. It acts on nobody.

use refract_kernel::sock_diag::{DestroySupport, SockDiag};
use tracing::{error, warn};

use super::Terms;
use crate::{backend::Backend, error::Error, survey::Surveyor};

/// The kernel side: absent in a dry run.
#[derive(Debug)]
pub struct Arms {
    /// Where bans are kept.
    pub bans: Backend,
    /// For exact lookups and destruction.
    pub sockets: SockDiag,
    /// For everything that takes a dump.
    pub surveyor: Surveyor,
}

/// Opens the kernel side of enforcement.
pub fn arm(bans: Backend, terms: &Terms) -> Result<Arms, Error> {
    let sockets = SockDiag::open()?;
    let surveyor = Surveyor::start(terms.ports.ranges().to_vec(), terms.protocols.udp)?;
    Ok(Arms { bans, sockets, surveyor })
}

/// Tries whether connections can be reset here. Refuses where that is not permitted; where the
/// kernel cannot do it at all, says so and goes on with bans alone.
pub fn require_reset() -> Result<(), Error> {
    match SockDiag::open()?.supports_destroy() {
        Ok(DestroySupport::Works) => {}
        Ok(DestroySupport::NotPermitted) => {
            return Err(Error::RightsElsewhere { act: "resetting connections" });
        }
        Ok(DestroySupport::NotBuilt) => error!(
            "this kernel cannot reset connections (it was built without \
             CONFIG_INET_DIAG_DESTROY): a banned device is shut out, but keeps its dead connection"
        ),
        Ok(DestroySupport::NoDiagnostics) => error!(
            "this kernel does not show its TCP connections, so none can be reset: modprobe \
             tcp_diag; until then a banned device is shut out, but keeps its dead connection"
        ),
        Err(error) => warn!("could not try whether connections can be reset: {error}"),
    }
    Ok(())
}

/// Whether sockets of this network namespace may speak MPTCP (Documentation/networking/mptcp-sysctl).
pub(super) fn speaks_mptcp() -> bool {
    std::fs::read_to_string("/proc/sys/net/mptcp/enabled")
        .is_ok_and(|enabled| enabled.trim() == "1")
}
