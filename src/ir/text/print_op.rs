//! Ops and terms to text.

use std::fmt::Write;

use super::print::{Printer, bare_or_quoted, quoted};
use crate::ir::{
    FactorRef, Grad, GradKind, Graph, Layout, LowRankTerm, Matrix, OnnxOp, Op, OpId, OpKind, OpRef,
    Role, Rotation, Term,
};
use crate::numeric::FactorFormat;

impl Printer<'_> {
    pub(super) fn op(&mut self, graph: &Graph, id: OpId) {
        let Some(op) = graph.op(id) else { return };
        self.line();
        for (i, result) in op.results.iter().enumerate() {
            self.comma(i);
            match result {
                Some(value) => self.value_name(graph, *value),
                None => self.out.push('_'),
            }
        }
        if !op.results.is_empty() {
            self.out.push_str(" = ");
        }
        self.op_kind(graph, op);
        if !op.name.is_empty() {
            let _ = write!(self.out, " name({})", quoted(op.name.as_bytes()));
        }
        self.meta(&op.meta, self.graph);
        self.result_types(graph, op);
        let at = OpRef {
            graph: self.graph,
            op: id,
        };
        if let Some(comment) = self.options.annotate.and_then(|f| f(at)) {
            let _ = write!(self.out, "  // {comment}");
        }
        self.out.push('\n');
    }

    fn result_types(&mut self, graph: &Graph, op: &Op) {
        let known = op.results.iter().flatten().any(|v| {
            graph
                .value(*v)
                .is_some_and(|v| v.ty.is_some() || !v.meta.is_empty())
        });
        if !known {
            return;
        }
        self.out.push_str(" : ");
        for (i, result) in op.results.iter().enumerate() {
            self.comma(i);
            match result {
                Some(value) => self.type_and_meta(graph, *value),
                None => self.out.push('?'),
            }
        }
    }

    fn operands(&mut self, graph: &Graph, op: &Op) {
        for (i, input) in op.inputs.iter().enumerate() {
            self.comma(i);
            self.operand(graph, *input);
        }
    }

    fn op_kind(&mut self, graph: &Graph, op: &Op) {
        match &op.kind {
            OpKind::Onnx(onnx) => self.onnx(graph, op, onnx),
            OpKind::Native(native) => {
                let _ = write!(self.out, "{} ", native.name());
                self.operands(graph, op);
                self.fields(serde_json::to_value(native));
            }
            OpKind::Grad(grad) => self.grad(graph, op, grad),
            OpKind::Linear(linear) => {
                self.out.push_str("linear ");
                self.operands(graph, op);
                self.matrix(&linear.matrix);
                if let Some(bias) = linear.bias {
                    self.out.push_str(" bias(");
                    self.weight_name(bias);
                    self.out.push(')');
                }
                match linear.layout {
                    Layout::Rows => {}
                    Layout::Columns => self.out.push_str(" layout(columns)"),
                    Layout::Channels(n) => {
                        let _ = write!(self.out, " layout(channels, {n})");
                    }
                }
                if linear.scale != 1.0 {
                    let _ = write!(
                        self.out,
                        " scale({})",
                        super::print::float_text(linear.scale)
                    );
                }
                if linear.role != Role::Linear {
                    let _ = write!(self.out, " role({})", linear.role.name());
                }
            }
            OpKind::Embedding(embedding) => {
                self.out.push_str("embedding ");
                self.operands(graph, op);
                self.matrix(&embedding.matrix);
            }
            OpKind::Moe(moe) => {
                self.out.push_str("moe ");
                self.operands(graph, op);
                let normalize = moe.normalize;
                let _ = write!(
                    self.out,
                    " {{top_k={}, normalize={normalize}}} experts [",
                    moe.top_k
                );
                for (i, region) in moe.experts.iter().enumerate() {
                    self.comma(i);
                    self.region(self.graph, region);
                }
                self.out.push(']');
            }
        }
    }

    fn grad(&mut self, graph: &Graph, op: &Op, grad: &Grad) {
        let _ = write!(self.out, "{} ", grad.name());
        self.operands(graph, op);
        self.fields(match &grad.kind {
            GradKind::Of(native) => serde_json::to_value(native),
            GradKind::Op(training) => serde_json::to_value(training),
        });
        if let Some(matrix) = &grad.matrix {
            self.matrix(matrix);
        }
        if !grad.experts.is_empty() {
            self.out.push_str(" experts [");
            for (i, region) in grad.experts.iter().enumerate() {
                self.comma(i);
                self.region(self.graph, region);
            }
            self.out.push(']');
        }
    }

    /// ` {name=value}` of a native op's fields.
    fn fields(&mut self, value: serde_json::Result<serde_json::Value>) {
        let Ok(serde_json::Value::Object(mut fields)) = value else {
            return;
        };
        fields.shift_remove("op");
        if !fields.is_empty() {
            self.out.push(' ');
            json_dict(&mut self.out, &fields);
        }
    }

    fn onnx(&mut self, graph: &Graph, op: &Op, onnx: &OnnxOp) {
        self.out.push_str("onnx.");
        if !onnx.domain.is_empty() {
            let _ = write!(self.out, "{}.", quoted(onnx.domain.as_bytes()));
        }
        let plain = onnx
            .op_type
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b == b'_');
        if plain && !onnx.op_type.is_empty() {
            self.out.push_str(&onnx.op_type);
        } else {
            self.out.push_str(&quoted(onnx.op_type.as_bytes()));
        }
        if !onnx.overload.is_empty() {
            let _ = write!(self.out, "!{}", quoted(onnx.overload.as_bytes()));
        }
        self.out.push('(');
        self.operands(graph, op);
        self.out.push(')');
        if !onnx.attrs.is_empty() {
            self.out.push(' ');
            self.dict(&onnx.attrs, self.graph);
        }
    }

    /// ` [out,in] { term + term }`
    fn matrix(&mut self, matrix: &Matrix) {
        let _ = write!(
            self.out,
            " [{},{}] {{ ",
            matrix.out_features, matrix.in_features
        );
        for (i, term) in matrix.terms.iter().enumerate() {
            if i > 0 {
                self.out.push_str(" + ");
            }
            self.term(matrix, term);
        }
        self.out.push_str(" }");
    }

    fn term(&mut self, matrix: &Matrix, term: &Term) {
        self.out.push_str(term.name());
        self.out.push('(');
        match term {
            Term::Dense(view) => {
                self.weight_name(view.weight);
                if let Some(index) = view.index {
                    let _ = write!(self.out, ", index={index}");
                }
                if view.transposed {
                    self.out.push_str(", transposed");
                }
            }
            Term::Quant(q) => {
                let parts: Vec<_> = [Some(q.codes), Some(q.scales), q.zeros]
                    .into_iter()
                    .flatten()
                    .collect();
                for w in parts {
                    self.weight_name(w);
                    self.out.push_str(", ");
                }
                let _ = write!(self.out, "int{}, group={}", q.scheme.bits, q.group);
                self.rotation(q.rotation);
            }
            Term::Trellis(t) => {
                for w in [t.codes, t.scales, t.bits] {
                    self.weight_name(w);
                    self.out.push_str(", ");
                }
                let _ = write!(self.out, "states={}", t.states);
                self.rotation(t.rotation);
            }
            Term::LowRank(l) => {
                self.factor(&l.u);
                self.out.push_str(", ");
                self.factor(&l.v);
                self.blocks(matrix, l);
            }
            Term::Sparse(s) => {
                for w in [s.values, s.columns, s.offsets] {
                    self.weight_name(w);
                    self.out.push_str(", ");
                }
                let _ = write!(self.out, "nnz={}", s.nnz);
            }
            Term::Columns(c) => {
                for w in [c.columns, c.values] {
                    self.weight_name(w);
                    self.out.push_str(", ");
                }
                let _ = write!(self.out, "count={}", c.count);
            }
            Term::Custom(c) => {
                for (i, (name, w)) in c.tensors.iter().enumerate() {
                    self.comma(i);
                    self.out.push_str(&bare_or_quoted(name));
                    self.out.push('=');
                    self.weight_name(*w);
                }
                if !c.attrs.is_empty() {
                    self.comma(c.tensors.len());
                    json_dict(&mut self.out, &c.attrs);
                }
            }
        }
        self.out.push(')');
    }

    fn rotation(&mut self, rotation: Option<Rotation>) {
        if let Some(r) = rotation {
            let (out, inp, seed) = (r.out_block, r.in_block, r.seed);
            let _ = write!(self.out, ", rotate(out={out}, in={inp}, seed={seed})");
        }
    }

    fn factor(&mut self, factor: &FactorRef) {
        let word = match factor.format {
            FactorFormat::F32 => "f32",
            FactorFormat::F16 => "f16",
            FactorFormat::Int8 => "int8",
            FactorFormat::Int4 => "int4",
        };
        let _ = write!(self.out, "{word}(");
        self.weight_name(factor.data);
        if let Some(scales) = factor.scales {
            self.out.push_str(", ");
            self.weight_name(scales);
        }
        self.out.push(')');
    }

    fn blocks(&mut self, matrix: &Matrix, term: &LowRankTerm) {
        if let [b] = term.blocks.as_slice()
            && (b.row0, b.col0) == (0, 0)
            && (b.rows as u64, b.cols as u64) == (matrix.out_features, matrix.in_features)
        {
            let _ = write!(self.out, ", r={}", b.rank);
            return;
        }
        self.out.push_str(", blocks=[");
        for (i, b) in term.blocks.iter().enumerate() {
            self.comma(i);
            let (rows, cols) = ((b.row0, b.rows), (b.col0, b.cols));
            let _ = write!(
                self.out,
                "({}+{}, {}+{}, r={})",
                rows.0, rows.1, cols.0, cols.1, b.rank
            );
        }
        self.out.push(']');
    }
}

/// Fields of a native op: `{eps=1e-5, causal=true, scaling={type="llama3", factor=8.0}}`.
fn json_dict(out: &mut String, fields: &serde_json::Map<String, serde_json::Value>) {
    out.push('{');
    for (i, (name, value)) in fields.iter().enumerate() {
        if i > 0 {
            out.push_str(", ");
        }
        out.push_str(&bare_or_quoted(name));
        out.push('=');
        match value {
            serde_json::Value::Object(inner) => json_dict(out, inner),
            serde_json::Value::String(s) => out.push_str(&quoted(s.as_bytes())),
            other => out.push_str(&other.to_string()),
        }
    }
    out.push('}');
}
