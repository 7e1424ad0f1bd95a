//! Rotations that are ops of the graph.

use super::{Result, Scan};
use crate::ir::{Native, Op};
use crate::numeric::hadamard::Rotation;
use crate::plan::lower::macros::Macro;

impl<'a> Scan<'a> {
    pub(super) fn hadamard(&mut self, op: &'a Op, native: &Native) -> Result<()> {
        let Native::Hadamard {
            block,
            seed,
            inverse,
        } = native
        else {
            return Ok(());
        };
        let input = self.value(op, 0)?;
        let x = self.operand(op, input)?;
        // Slots are padded to 16 columns: what larger blocks divide has none, and smaller ones divide
        // the padding too.
        let width = self.width(x);
        let block = usize::try_from(*block)
            .ok()
            .filter(|&block| block.is_power_of_two() && width.is_multiple_of(block as u64));
        let Some(block) = block else {
            return self.refuse(op, format!("its blocks do not divide {width} columns"));
        };
        let result = self.result(op)?;
        let name = self.linear_name(op, result);
        let y = self.slot(&name, width);
        self.notes.push((
            name.clone(),
            "a launch of its own: a rotation of whole rows".to_string(),
        ));
        self.macros.push(Macro::Hadamard {
            name,
            rotation: Rotation { block, seed: *seed },
            inverse: *inverse,
            x,
            y,
        });
        self.values.insert(result, y);
        Ok(())
    }
}
