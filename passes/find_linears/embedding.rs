//! Gather from a constant table.

use super::{Finder, SPELLING, has_one_result, int, onnx_of, spelling};
use crate::ir::{Attr, Embedding, Matrix, OpId, OpKind, Operand, WeightView};
use crate::weights::DType;

impl Finder<'_> {
    pub(super) fn embedding(&mut self, id: OpId) {
        let graph = self.graph;
        let Some(op) = graph.op(id).filter(|op| has_one_result(op)) else {
            return;
        };
        if super::coded::is_contrib(op, "GatherBlockQuantized") {
            return self.gather_codes(id, op);
        }
        let Some(onnx) = onnx_of(op).filter(|onnx| onnx.op_type == "Gather") else {
            return;
        };
        let &[table, indices] = op.inputs.as_slice() else {
            return;
        };
        if int(onnx, "axis", 0) != 0 || !matches!(indices, Operand::Value(_)) {
            return;
        }
        if self.sparse_rows(id, op, table, indices) {
            return;
        }
        let Some(found) = self.constant(table) else {
            return self.not_constant(op, &[table]);
        };
        let float = matches!(found.dtype, DType::F32 | DType::F16 | DType::BF16);
        let &[rows, cols] = found.dims.as_slice() else {
            return;
        };
        let (entries, width) = if found.transposed {
            (cols, rows)
        } else {
            (rows, cols)
        };
        if !float || entries == 0 || width == 0 {
            return;
        }
        if entries > self.largest_table.0 {
            self.largest_table = (entries, width);
        }
        let view = WeightView {
            weight: found.weight,
            index: None,
            transposed: found.transposed,
        };
        let matrix = Matrix::dense(entries, width, view);
        let mut raised = op.clone();
        raised.kind = OpKind::Embedding(Embedding { matrix });
        raised.inputs = vec![indices];
        raised
            .meta
            .set(SPELLING, Attr::Dict(spelling(onnx, &found)));
        self.replace(id, raised, &found.chain);
    }
}
