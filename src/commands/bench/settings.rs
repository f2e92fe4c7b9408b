//! The TCP transport's settings for a cell: the daemon's, but for what the cell says.

use kvferry_transport::EndpointId;
use kvferry_transport_tcp::Settings;

use super::cell::{Cell, Verify};

/// The one path of a cell.
pub(super) const ENDPOINT: EndpointId = EndpointId(1);

/// The same at both ends.
pub(super) fn settings(cell: &Cell) -> Settings {
    Settings { checksums: cell.verify == Verify::Full, ..Settings::default() }
}
