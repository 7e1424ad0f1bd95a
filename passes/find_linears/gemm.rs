//! Gemm: `alpha · A' · B' + beta · C`, with a constant B.

use super::{Constant, Finder, SPELLING, float, int, spelling};
use crate::ir::{
    Attr, Attrs, Layout, Linear, OnnxOp, Op, OpId, OpKind, Operand, Storage, ValueId, Weight,
    WeightId,
};
use crate::weights::read::encode_f32;

/// What becomes of a Gemm's C.
enum Addend {
    None,
    /// A bias, as it is or made of C and beta.
    Bias(WeightId, bool),
    /// Something that is added behind the linear.
    Value(Operand),
}

impl Finder<'_> {
    pub(super) fn gemm(&mut self, id: OpId, op: &Op, onnx: &OnnxOp) {
        let (Some(&a), Some(&b)) = (op.inputs.first(), op.inputs.get(1)) else {
            return;
        };
        let (left, right) = (self.constant(a), self.constant(b));
        let (None, Some(found)) = (&left, right) else {
            if left.is_some() {
                self.missed(op, "the weight is the first operand of a Gemm");
            } else {
                self.not_constant(op, &[b]);
            }
            return;
        };
        if found.dims.len() != 2 {
            return;
        }
        let flip = int(onnx, "transB", 0) == 0;
        let scale = float(onnx, "alpha", 1.0);
        let Some(linear) = self.linear_of(op, &found, flip, Layout::Rows, scale) else {
            return;
        };
        let axis = if int(onnx, "transA", 0) == 0 { 1 } else { 0 };
        if let Err(why) = self.fits(a, axis, Some(2), linear.matrix.in_features) {
            return self.missed(op, why);
        }
        let addend = match self.addend(op, onnx, linear.matrix.out_features) {
            Ok(addend) => addend,
            Err(why) => return self.missed(op, why),
        };
        self.raise_gemm(id, op, onnx, &found, linear, addend);
    }

    fn addend(&mut self, op: &Op, onnx: &OnnxOp, out: u64) -> Result<Addend, String> {
        let beta = float(onnx, "beta", 1.0);
        let c = op.inputs.get(2).copied().unwrap_or(Operand::None);
        if c == Operand::None || beta == 0.0 {
            return Ok(Addend::None);
        }
        let Some(constant) = self.constant(c).filter(|c| !c.transposed) else {
            return match beta == 1.0 {
                true => Ok(Addend::Value(c)),
                false => Err("Gemm scales what it adds, which is no constant".to_owned()),
            };
        };
        let dims = constant.dims.as_slice();
        let per_output = dims == [out] || dims == [1, out];
        if per_output && beta == 1.0 && matches!(c, Operand::Weight(_)) {
            return Ok(Addend::Bias(constant.weight, false));
        }
        let one = dims.iter().all(|&dim| dim == 1);
        if !per_output && !one {
            return match beta == 1.0 {
                true => Ok(Addend::Value(c)),
                false => Err(format!(
                    "Gemm scales and adds {dims:?}, not one value per output"
                )),
            };
        }
        let made = self.scaled_bias(&constant, beta, out);
        let made = made.ok_or("the data of what Gemm adds can't be read")?;
        self.chains.extend(constant.chain);
        Ok(Addend::Bias(made, true))
    }

    /// `beta · C` as one value per output.
    fn scaled_bias(&mut self, constant: &Constant, beta: f32, out: u64) -> Option<WeightId> {
        let mut values = self.values(constant.weight)?;
        if values.len() == 1 {
            values = vec![*values.first()?; usize::try_from(out).ok()?];
        }
        values.iter_mut().for_each(|value| *value *= beta);
        let bytes = encode_f32(constant.dtype, &values)?;
        let stem = &self.module.weight(constant.weight)?.name;
        let name = self.weight_name(format!("{stem}.scaled"));
        Some(self.patch.add_weight(Weight {
            name,
            dtype: constant.dtype,
            dims: vec![out],
            storage: Storage::Inline(bytes),
            sha256: None,
            meta: Attrs::new(),
        }))
    }

    fn raise_gemm(
        &mut self,
        id: OpId,
        op: &Op,
        onnx: &OnnxOp,
        found: &Constant,
        mut linear: Linear,
        addend: Addend,
    ) {
        let (Some(&a), Some(&Some(result))) = (op.inputs.first(), op.results.first()) else {
            return;
        };
        let mut spelled = onnx.clone();
        let mut ops = Vec::new();
        let mut input = a;
        if int(onnx, "transA", 0) != 0 {
            spelled.attrs.remove("transA");
            let value = self.between(result, "rows");
            let perm = vec![("perm".to_owned(), Attr::Ints(vec![1, 0]))];
            ops.push(standard("Transpose", Attrs(perm), vec![a], value));
            input = Operand::Value(value);
        }
        let mut raised = op.clone();
        if let Addend::Bias(bias, made) = addend {
            linear.bias = Some(bias);
            if made {
                spelled.attrs.remove("beta");
            }
        }
        raised.kind = OpKind::Linear(linear);
        raised.inputs = vec![input];
        raised
            .meta
            .set(SPELLING, Attr::Dict(spelling(&spelled, found)));
        match addend {
            Addend::Value(c) => {
                let product = self.between(result, "product");
                raised.results = vec![Some(product)];
                ops.push(raised);
                let inputs = vec![Operand::Value(product), c];
                ops.push(standard("Add", Attrs::new(), inputs, result));
            }
            _ => ops.push(raised),
        }
        self.replace_all(id, ops, &found.chain);
    }

    /// A new value, named after the one that it leads to.
    fn between(&mut self, result: ValueId, suffix: &str) -> ValueId {
        let name = self.graph.value(result).map_or("", |value| &value.name);
        let name = format!("{name}_{suffix}");
        self.patch.add_value(self.index, &name, None)
    }
}

fn standard(op_type: &str, attrs: Attrs, inputs: Vec<Operand>, result: ValueId) -> Op {
    let kind = OpKind::Onnx(OnnxOp {
        domain: String::new(),
        op_type: op_type.to_owned(),
        overload: String::new(),
        attrs,
    });
    Op::new(kind, inputs, result)
}
