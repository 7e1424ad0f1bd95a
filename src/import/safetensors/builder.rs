//! Builds a graph op by op while asking for the tensors that it needs.

use super::tensors::Tensors;
use crate::ir::{
    Activation, Dim, Embedding, Graph, Layout, Linear, Matrix, Native, Op, OpId, OpKind, Operand,
    Region, Role, Type, ValueId, WeightId, WeightView,
};
use crate::weights::DType;

/// A graph under construction.
pub(super) struct Builder {
    /// The weights, and what is wrong with them.
    pub(super) tensors: Tensors,
    graph: Graph,
    /// Ops of the regions around the current one.
    outer: Vec<Vec<OpId>>,
    ops: Vec<OpId>,
    /// Leading dimensions of activations: `[B,S]`, or `[N]` inside an expert.
    leading: Vec<Dim>,
}

/// A linear to be made: names, shape and how it is stored.
pub(super) struct LinearSpec<'a> {
    /// Path of the module: the op's name.
    pub(super) path: &'a str,
    /// Output features.
    pub(super) out: u64,
    /// Input features.
    pub(super) inp: u64,
    /// Whether a tensor `<path>.bias` `[out]` is added.
    pub(super) bias: bool,
    /// What it is in the model.
    pub(super) role: Role,
    /// Whether the tensor is `[in, out]`.
    pub(super) transposed: bool,
}

impl<'a> LinearSpec<'a> {
    /// A body linear without bias, stored as `[out, in]`.
    pub(super) fn new(path: &'a str, out: u64, inp: u64) -> Self {
        Self {
            path,
            out,
            inp,
            bias: false,
            role: Role::Linear,
            transposed: false,
        }
    }

    /// The same with a bias, if so.
    pub(super) fn bias(mut self, bias: bool) -> Self {
        self.bias = bias;
        self
    }

    /// The same in another role.
    pub(super) fn role(mut self, role: Role) -> Self {
        self.role = role;
        self
    }

    /// The same, stored as `[in, out]`.
    pub(super) fn transposed(mut self) -> Self {
        self.transposed = true;
        self
    }
}

impl Builder {
    /// An empty graph `@main`.
    pub(super) fn new(tensors: Tensors) -> Self {
        let mut graph = Graph::default();
        graph.body.name = "main".to_string();
        Self {
            tensors,
            graph,
            outer: Vec::new(),
            ops: Vec::new(),
            leading: vec![Dim::symbol("B"), Dim::symbol("S")],
        }
    }

    /// A graph input of integers `[B,S]`.
    pub(super) fn ids(&mut self, name: &str) -> ValueId {
        let ty = Type::tensor(DType::I64, self.leading.clone());
        self.input(name, ty)
    }

    /// A graph input.
    pub(super) fn input(&mut self, name: &str, ty: Type) -> ValueId {
        let value = self.graph.add_value(name, Some(ty));
        self.graph.body.inputs.push(value);
        value
    }

    /// Names a value and makes it an output.
    pub(super) fn output(&mut self, value: ValueId, name: &str, ty: Type) {
        if let Some(made) = self.graph.values.get_mut(value.index()) {
            made.name = name.to_string();
            made.ty = Some(ty);
        }
        self.graph.body.outputs.push(Operand::Value(value));
    }

    /// Gives a value another type.
    pub(super) fn retype(&mut self, value: ValueId, ty: Type) {
        if let Some(made) = self.graph.values.get_mut(value.index()) {
            made.ty = Some(ty);
        }
    }

    /// The type of activations of this width.
    pub(super) fn activations(&self, width: u64) -> Type {
        let mut dims = self.leading.clone();
        dims.push(Dim::Known(i64::try_from(width).unwrap_or(i64::MAX)));
        Type::tensor(DType::F32, dims)
    }

    /// Adds an op with one result.
    pub(super) fn op(
        &mut self,
        name: &str,
        kind: OpKind,
        inputs: Vec<Operand>,
        ty: Option<Type>,
    ) -> ValueId {
        let result = self.graph.add_value("", ty);
        let mut op = Op::new(kind, inputs, result);
        op.name = name.to_string();
        let id = self.graph.add_op(op);
        self.ops.push(id);
        result
    }

    fn native(&mut self, name: &str, native: Native, inputs: Vec<Operand>) -> ValueId {
        self.op(name, OpKind::Native(native), inputs, None)
    }

    /// `<path>.weight`, and `<path>.bias` where there is one.
    pub(super) fn linear(&mut self, x: ValueId, spec: &LinearSpec<'_>) -> ValueId {
        let name = format!("{}.weight", spec.path);
        let dims = match spec.transposed {
            true => [spec.inp, spec.out],
            false => [spec.out, spec.inp],
        };
        let view = WeightView {
            weight: self.tensors.weight(&name, &dims),
            index: None,
            transposed: spec.transposed,
        };
        let bias = format!("{}.bias", spec.path);
        let bias = spec.bias.then(|| self.tensors.weight(&bias, &[spec.out]));
        self.linear_of(x, spec, view, bias)
    }

    /// A linear whose tensors are known already.
    pub(super) fn linear_of(
        &mut self,
        x: ValueId,
        spec: &LinearSpec<'_>,
        view: WeightView,
        bias: Option<WeightId>,
    ) -> ValueId {
        let linear = Linear {
            matrix: Matrix::dense(spec.out, spec.inp, view),
            bias,
            layout: Layout::Rows,
            scale: 1.0,
            role: spec.role,
        };
        let ty = self.activations(spec.out);
        self.op(
            spec.path,
            OpKind::Linear(linear),
            vec![Operand::Value(x)],
            Some(ty),
        )
    }

    /// A table `<path>.weight` `[entries, width]`; returns the vectors and the table's tensor.
    pub(super) fn embedding(
        &mut self,
        ids: ValueId,
        path: &str,
        entries: u64,
        width: u64,
    ) -> (ValueId, WeightId) {
        let weight = self
            .tensors
            .weight(&format!("{path}.weight"), &[entries, width]);
        let matrix = Matrix::dense(entries, width, WeightView::whole(weight));
        let kind = OpKind::Embedding(Embedding { matrix });
        let ty = self.activations(width);
        (
            self.op(path, kind, vec![Operand::Value(ids)], Some(ty)),
            weight,
        )
    }

    /// A root-mean-square norm with gain `<path>.weight` `[width]`, or `[slice]` where it is sliced.
    pub(super) fn rms_norm(
        &mut self,
        x: ValueId,
        path: &str,
        width: u64,
        (eps, unit_offset, slice): (f64, bool, Option<u64>),
    ) -> ValueId {
        let gain = self
            .tensors
            .weight(&format!("{path}.weight"), &[slice.unwrap_or(width)]);
        let norm = Native::RmsNorm {
            eps,
            unit_offset,
            slice,
        };
        self.native(path, norm, vec![Operand::Value(x), Operand::Weight(gain)])
    }

    /// A layer norm with gain and bias `[width]`; TensorFlow's names (`gamma`, `beta`) count too.
    pub(super) fn layer_norm(&mut self, x: ValueId, path: &str, width: u64, eps: f64) -> ValueId {
        let mut tensor = |names: [&str; 2]| {
            let names = names.map(|n| format!("{path}.{n}"));
            let name = self
                .tensors
                .first_of(&names.each_ref().map(String::as_str))
                .to_string();
            Operand::Weight(self.tensors.weight(&name, &[width]))
        };
        let (gain, bias) = (tensor(["weight", "gamma"]), tensor(["bias", "beta"]));
        self.native(
            path,
            Native::LayerNorm { eps },
            vec![Operand::Value(x), gain, bias],
        )
    }

    /// An op of one or more values without weights.
    pub(super) fn apply(&mut self, name: &str, native: Native, inputs: &[ValueId]) -> ValueId {
        let inputs = inputs.iter().map(|&v| Operand::Value(v)).collect();
        self.native(name, native, inputs)
    }

    /// Attention with a key mask, or without.
    pub(super) fn attention(
        &mut self,
        name: &str,
        native: Native,
        qkv: [ValueId; 3],
        mask: Option<ValueId>,
    ) -> ValueId {
        let mut inputs = qkv.map(Operand::Value).to_vec();
        inputs.push(mask.map_or(Operand::None, Operand::Value));
        self.native(name, native, inputs)
    }

    /// x + y
    pub(super) fn add(&mut self, x: ValueId, y: ValueId) -> ValueId {
        self.apply("", Native::Add, &[x, y])
    }

    /// f(x)
    pub(super) fn activate(&mut self, x: ValueId, function: Activation) -> ValueId {
        self.apply("", Native::Activate { function }, &[x])
    }

    /// Columns of x.
    pub(super) fn slice(&mut self, x: ValueId, start: u64, width: u64) -> ValueId {
        self.apply("", Native::Slice { start, width }, &[x])
    }

    /// A region from tokens `[N,width]` to tokens, filled by `fill`.
    pub(super) fn region(
        &mut self,
        name: &str,
        width: u64,
        fill: impl FnOnce(&mut Self, ValueId) -> ValueId,
    ) -> Region {
        let leading = std::mem::replace(&mut self.leading, vec![Dim::symbol("N")]);
        let outside = std::mem::take(&mut self.ops);
        self.outer.push(outside);
        let ty = self.activations(width);
        let input = self.graph.add_value("", Some(ty));
        let output = fill(self, input);
        let ops = std::mem::replace(&mut self.ops, self.outer.pop().unwrap_or_default());
        self.leading = leading;
        Region {
            name: name.to_string(),
            inputs: vec![input],
            outputs: vec![Operand::Value(output)],
            ops,
            ..Region::default()
        }
    }

    /// The graph and the tensors.
    pub(super) fn finish(mut self) -> (Graph, Tensors) {
        self.graph.body.ops = self.ops;
        (self.graph, self.tensors)
    }
}
