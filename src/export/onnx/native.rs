//! Native transformer ops → standard ONNX ops (opset 17), in f32.
//!
//! Activations are `[B,S,width]`. Without a cache ([`super::Options::cache`]) a call sees the
//! whole sequence.

use super::ExportError;
use super::lower::{Lowerer, Site, no_form};
use crate::ir::{Activation, Attr, Dim, Native, Op, Operand, TensorType, Type};
use crate::weights::DType;

impl Lowerer<'_> {
    /// The nodes of a native op; the value that they end in.
    pub(super) fn native(
        &mut self,
        site: &mut Site,
        op: &Op,
        native: &Native,
    ) -> Result<Operand, ExportError> {
        // The forms below are those of opset 17; a raised model may come from an older one.
        self.opset = self.opset.max(17);
        let inputs: Vec<Operand> = op
            .inputs
            .iter()
            .map(|&input| self.activation(site, input))
            .collect();
        let input = |at: usize| inputs.get(at).copied().unwrap_or(Operand::None);
        let (x, y) = (input(0), input(1));
        Ok(match native {
            Native::Add => self.standard(site, "Add", vec![x, y], Vec::new()),
            Native::Mul => self.standard(site, "Mul", vec![x, y], Vec::new()),
            Native::Scale { factor } if y == Operand::None => self.times(site, x, *factor)?,
            Native::Scale { .. } => self.standard(site, "Mul", vec![x, y], Vec::new()),
            Native::Softcap { cap } => self.softcap(site, x, *cap)?,
            Native::Hadamard {
                block,
                seed,
                inverse,
            } => self.hadamard(site, op, (*block, *seed), *inverse)?,
            Native::Slice { start, width } => {
                let end = start.saturating_add(*width);
                // Slice has its bounds as inputs and negative axes.
                self.opset = self.opset.max(11);
                self.cut(site, x, (*start as i64, end as i64), 1)
            }
            Native::Positions => self.positions(site, x),
            Native::FirstToken => {
                let zero = self.inline(site, "zero", DType::I64, &[], vec![0; 8]);
                self.standard(site, "Gather", vec![x, zero], vec![("axis", Attr::Int(1))])
            }
            Native::Activate { function } => self.activate(site, x, *function)?,
            Native::RmsNorm {
                eps,
                unit_offset,
                slice,
            } => self.rms_norm(site, (x, y), *eps, *unit_offset, *slice)?,
            Native::LayerNorm { eps } => {
                let given = inputs
                    .into_iter()
                    .filter(|input| *input != Operand::None)
                    .collect();
                let eps = Attr::Float(crate::ir::Float(*eps as f32));
                let attrs = vec![("axis", Attr::Int(-1)), ("epsilon", eps)];
                self.standard(site, "LayerNormalization", given, attrs)
            }
            Native::Rope { .. } => self.rope(site, (x, y), native)?,
            Native::Attention { .. } => self.attention(site, &inputs, native)?,
        })
    }

    /// An operand as f32: weights may be stored in a shorter type.
    pub(super) fn activation(&mut self, site: &mut Site, operand: Operand) -> Operand {
        let Operand::Weight(id) = operand else {
            return operand;
        };
        let dtype = self
            .source
            .weight(id)
            .map_or(DType::F32, |weight| weight.dtype);
        if dtype.is_float() {
            self.cast(site, operand, dtype)
        } else {
            operand
        }
    }

    /// A scalar of the activations' type.
    pub(super) fn number(&mut self, site: &Site, value: f64) -> Result<Operand, ExportError> {
        let scalar = self.scalar(site, "number", value as f32);
        scalar.ok_or_else(|| no_form(site, "a number of this element type"))
    }

    /// `x · factor`
    pub(super) fn times(
        &mut self,
        site: &mut Site,
        x: Operand,
        factor: f64,
    ) -> Result<Operand, ExportError> {
        let factor = self.number(site, factor)?;
        Ok(self.standard(site, "Mul", vec![x, factor], Vec::new()))
    }

    fn plus(&mut self, site: &mut Site, x: Operand, term: f64) -> Result<Operand, ExportError> {
        let term = self.number(site, term)?;
        Ok(self.standard(site, "Add", vec![x, term], Vec::new()))
    }

    /// An op of one input without attributes.
    pub(super) fn unary(&mut self, site: &mut Site, op_type: &str, x: Operand) -> Operand {
        self.standard(site, op_type, vec![x], Vec::new())
    }

    /// `cap · tanh(x / cap)`
    pub(super) fn softcap(
        &mut self,
        site: &mut Site,
        x: Operand,
        cap: f64,
    ) -> Result<Operand, ExportError> {
        let inner = self.times(site, x, 1.0 / cap)?;
        let bounded = self.unary(site, "Tanh", inner);
        self.times(site, bounded, cap)
    }

    /// Elements `from..to` of the last axis, every `step`-th.
    pub(super) fn cut(
        &mut self,
        site: &mut Site,
        x: Operand,
        (from, to): (i64, i64),
        step: i64,
    ) -> Operand {
        let from = self.ints(site, "from", &[from]);
        let to = self.ints(site, "to", &[to]);
        let axis = self.ints(site, "axis", &[-1]);
        let mut inputs = vec![x, from, to, axis];
        if step != 1 {
            inputs.push(self.ints(site, "step", &[step]));
        }
        self.standard(site, "Slice", inputs, Vec::new())
    }

    /// Another shape: 0 keeps a dimension, −1 takes what is left.
    pub(super) fn reshape(&mut self, site: &mut Site, x: Operand, shape: &[i64]) -> Operand {
        let shape = self.ints(site, "shape", shape);
        self.standard(site, "Reshape", vec![x, shape], Vec::new())
    }

    /// A dimension of one at `axis`.
    pub(super) fn unsqueeze(&mut self, site: &mut Site, x: Operand, axis: i64) -> Operand {
        let axes = self.ints(site, "axes", &[axis]);
        self.standard(site, "Unsqueeze", vec![x, axes], Vec::new())
    }

    /// The size of dimension `axis` as an `i64` scalar.
    pub(super) fn size(&mut self, site: &mut Site, x: Operand, axis: i64) -> Operand {
        let shape = self.unary(site, "Shape", x);
        let at = self.inline(site, "axis", DType::I64, &[], axis.to_le_bytes().to_vec());
        self.standard(site, "Gather", vec![shape, at], Vec::new())
    }

    /// `0, 1, …` up to a scalar.
    pub(super) fn range(&mut self, site: &mut Site, end: Operand) -> Operand {
        let zero = self.inline(site, "zero", DType::I64, &[], vec![0; 8]);
        let one = self.inline(site, "one", DType::I64, &[], 1i64.to_le_bytes().to_vec());
        self.standard(site, "Range", vec![zero, end, one], Vec::new())
    }

    fn positions(&mut self, site: &mut Site, ids: Operand) -> Operand {
        let length = self.size(site, ids, 1);
        let mut counted = self.range(site, length);
        if let Some(past) = self.past_length(site) {
            counted = self.standard(site, "Add", vec![counted, past], Vec::new());
        }
        let shape = self.unary(site, "Shape", ids);
        self.standard(site, "Expand", vec![counted, shape], Vec::new())
    }

    fn activate(
        &mut self,
        site: &mut Site,
        x: Operand,
        function: Activation,
    ) -> Result<Operand, ExportError> {
        let gate = match function {
            Activation::Relu => return Ok(self.unary(site, "Relu", x)),
            Activation::Tanh => return Ok(self.unary(site, "Tanh", x)),
            Activation::Silu => {
                let gate = self.unary(site, "Sigmoid", x);
                return Ok(self.standard(site, "Mul", vec![x, gate], Vec::new()));
            }
            Activation::Gelu => {
                let inner = self.times(site, x, std::f64::consts::FRAC_1_SQRT_2)?;
                self.unary(site, "Erf", inner)
            }
            Activation::GeluTanh => {
                // √(2/π)·(x + 0.044715·x³)
                let square = self.standard(site, "Mul", vec![x, x], Vec::new());
                let square = self.times(site, square, 0.044715)?;
                let square = self.plus(site, square, 1.0)?;
                let cube = self.standard(site, "Mul", vec![x, square], Vec::new());
                let inner = self.times(site, cube, (2.0 / std::f64::consts::PI).sqrt())?;
                self.unary(site, "Tanh", inner)
            }
        };
        let gate = self.plus(site, gate, 1.0)?;
        let half = self.times(site, x, 0.5)?;
        Ok(self.standard(site, "Mul", vec![half, gate], Vec::new()))
    }

    fn rms_norm(
        &mut self,
        site: &mut Site,
        (x, gain): (Operand, Operand),
        eps: f64,
        unit_offset: bool,
        slice: Option<u64>,
    ) -> Result<Operand, ExportError> {
        let mut sliced = x;
        if let Some(width) = slice {
            sliced = self.reshape(site, x, &[0, 0, -1, width as i64]);
        }
        let square = self.standard(site, "Mul", vec![sliced, sliced], Vec::new());
        let mean = match self.source.meta.opset() {
            // From opset 18 on axes are an input.
            Some(18..) => {
                let axes = self.ints(site, "axes", &[-1]);
                self.standard(site, "ReduceMean", vec![square, axes], Vec::new())
            }
            _ => {
                let axes = vec![("axes", Attr::Ints(vec![-1]))];
                self.standard(site, "ReduceMean", vec![square], axes)
            }
        };
        let mean = self.plus(site, mean, eps)?;
        let root = self.unary(site, "Sqrt", mean);
        let scaled = self.standard(site, "Div", vec![sliced, root], Vec::new());
        let gain = if unit_offset {
            self.plus(site, gain, 1.0)?
        } else {
            gain
        };
        let y = self.standard(site, "Mul", vec![scaled, gain], Vec::new());
        match slice {
            None => Ok(y),
            Some(_) => {
                let shape = self.unary(site, "Shape", x);
                Ok(self.standard(site, "Reshape", vec![y, shape], Vec::new()))
            }
        }
    }

    /// What a module that isn't from ONNX lacks: names, types of outputs, the
    /// header.
    pub(super) fn complete(&mut self) {
        for index in 0..self.graph.values.len() {
            let unnamed = self
                .graph
                .values
                .get(index)
                .is_some_and(|value| value.name.is_empty());
            let name = if unnamed {
                self.fresh(&format!("v{index}"))
            } else {
                continue;
            };
            if let Some(value) = self.graph.values.get_mut(index) {
                value.name = name;
            }
        }
        if self.out.meta.get("opset_import").is_some() {
            return;
        }
        let name = self.out.name.clone();
        self.graph.body.meta.set("name", Attr::str(name));
        self.out.meta.set("ir_version", Attr::Int(8));
        self.out.meta.set("producer_name", Attr::str("hlrc-opt"));
        super::opset::import(&mut self.out.meta, "", 17);
        let ranks = super::shapes::last_dims(&self.graph);
        // Inner types are those of the source's precision and of single tokens.
        let inputs = self.graph.body.inputs.clone();
        for (index, value) in self.graph.values.iter_mut().enumerate() {
            if !inputs.iter().any(|input| input.index() == index) {
                value.ty = None;
            } else if let Some(Type::Tensor(tensor)) = &mut value.ty
                && tensor.dtype.is_float()
            {
                tensor.dtype = DType::F32;
            }
        }
        let outputs = self.graph.body.outputs.clone();
        for output in outputs {
            let Operand::Value(id) = output else { continue };
            let Some(value) = self.graph.values.get_mut(id.index()) else {
                continue;
            };
            let shape = ranks.get(&id).cloned();
            let shape = shape.or_else(|| Some(vec![Dim::Unknown; 3]));
            value.ty = Some(Type::Tensor(TensorType {
                dtype: DType::F32,
                shape,
            }));
        }
    }

    /// A tensor of f32 values.
    pub(super) fn floats(&mut self, site: &Site, suffix: &str, values: &[f32]) -> Operand {
        let bytes = values
            .iter()
            .flat_map(|value| value.to_le_bytes())
            .collect();
        self.inline(site, suffix, DType::F32, &[values.len()], bytes)
    }
}
