//! Slots of what goes from op to op.

use super::Scan;
use crate::plan::lower::macros::{Slot, SlotInfo};

impl Scan<'_> {
    /// A slot of its own name: what is made of a slot's rows, rounded or rotated, is found again by it.
    pub(super) fn slot(&mut self, name: &str, width: u64) -> Slot {
        let taken = |name: &str| self.slots.iter().any(|s| s.name == name);
        let numbered = (2..).map(|n| format!("{name}.{n}"));
        let name = std::iter::once(name.to_string())
            .chain(numbered)
            .find(|name| !taken(name))
            .unwrap_or_default();
        self.slots.push(SlotInfo {
            name,
            width: width.next_multiple_of(16),
            rows: 1,
        });
        Slot(self.slots.len() - 1)
    }
}
