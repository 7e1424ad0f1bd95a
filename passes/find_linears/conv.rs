//! 1×1 convolutions.

use super::{Finder, SPELLING, int, spelling};
use crate::ir::{Attr, Layout, OnnxOp, Op, OpId, OpKind, Operand};

impl Finder<'_> {
    pub(super) fn conv(&mut self, id: OpId, op: &Op, onnx: &OnnxOp) {
        let (Some(&x), Some(&w)) = (op.inputs.first(), op.inputs.get(1)) else {
            return;
        };
        let Some(found) = self.constant(w) else {
            return self.not_constant(op, &[w]);
        };
        let Some(spatial) = found.dims.get(2..).filter(|spatial| !spatial.is_empty()) else {
            return;
        };
        let all = |name: &str, value: i64| {
            onnx.attrs
                .get(name)
                .and_then(Attr::as_ints)
                .is_none_or(|v| v.iter().all(|&x| x == value))
        };
        let pointwise = spatial.iter().all(|&size| size == 1)
            && int(onnx, "group", 1) == 1
            && all("strides", 1)
            && all("pads", 0);
        let Ok(axes) = u8::try_from(spatial.len()) else {
            return;
        };
        if !pointwise || found.transposed || self.constant(x).is_some() {
            return;
        }
        let Some(mut linear) = self.linear_of(op, &found, false, Layout::Channels(axes), 1.0)
        else {
            return;
        };
        let rank = spatial.len() + 2;
        if let Err(why) = self.fits(x, 1, Some(rank), linear.matrix.in_features) {
            return self.missed(op, why);
        }
        match op.inputs.get(2).copied().unwrap_or(Operand::None) {
            Operand::None => {}
            Operand::Weight(bias) => {
                let dims = self
                    .module
                    .weight(bias)
                    .map(|weight| weight.dims.as_slice());
                if dims != Some(&[linear.matrix.out_features]) {
                    return self.missed(op, "the bias is not one value per output");
                }
                linear.bias = Some(bias);
            }
            Operand::Value(_) => return self.missed(op, "the bias is no constant"),
        }
        let mut raised = op.clone();
        raised.kind = OpKind::Linear(linear);
        raised.inputs = vec![x];
        raised
            .meta
            .set(SPELLING, Attr::Dict(spelling(onnx, &found)));
        self.replace(id, raised, &found.chain);
    }
}
