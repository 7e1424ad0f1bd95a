//! Text to ops.

use super::cursor::Cursor;
use super::parse::{Parser, Result};
use crate::ir::{
    Attrs, Embedding, Grad, GradKind, Layout, Linear, Moe, Native, OnnxOp, Op, OpId, OpKind,
    Operand, Role, Training,
};

impl Parser {
    /// `results = kind operands … name("…") meta{…} : types`
    pub(super) fn op(&mut self, c: &mut Cursor<'_>) -> Result<OpId> {
        // Results are defined after the op: its own regions and operands do not see them.
        let mut names = Vec::new();
        while matches!(c.peek(), Some(b'%' | b'_')) {
            names.push(ResultName::skip(c)?);
            if !c.eat(",") {
                break;
            }
        }
        if !names.is_empty() {
            c.expect("=")?;
        }
        let at = c.position();
        let word = c.word().to_string();
        let (kind, inputs) = match word.as_str() {
            "linear" => self.linear(c)?,
            "embedding" => {
                let inputs = self.operands(c)?;
                let matrix = self.matrix(c)?;
                (OpKind::Embedding(Embedding { matrix }), inputs)
            }
            "moe" => self.moe(c)?,
            "" => return Err(c.error("expected an op")),
            _ if word.starts_with("onnx.") => self.onnx(c, &word)?,
            _ if word.starts_with("grad.") || word.starts_with("loss.") => {
                self.grad(c, &word, at)?
            }
            _ => self.native(c, &word, at)?,
        };
        let mut name = String::new();
        if c.eat("name") {
            c.expect("(")?;
            name = c.name()?;
            c.expect(")")?;
        }
        let meta = self.meta(c)?;
        let results = self.results(c, &names)?;
        Ok(self.graph.add_op(Op {
            name,
            kind,
            inputs,
            results,
            meta,
        }))
    }

    fn results(
        &mut self,
        c: &mut Cursor<'_>,
        names: &[ResultName],
    ) -> Result<Vec<Option<crate::ir::ValueId>>> {
        let mut results = Vec::with_capacity(names.len());
        for name in names {
            results.push(match name {
                ResultName::None => None,
                ResultName::At(text) => Some(
                    self.define(&mut Cursor::new(text))
                        .map_err(|e| c.error(e.what))?,
                ),
            });
        }
        if c.eat(":") {
            for (i, result) in results.iter().enumerate() {
                if i > 0 {
                    c.expect(",")?;
                }
                self.typed(c, *result)?;
            }
        }
        Ok(results)
    }

    /// `a, b, c`; at least one.
    fn operands(&mut self, c: &mut Cursor<'_>) -> Result<Vec<Operand>> {
        let mut inputs = vec![self.operand(c)?];
        while c.eat(",") {
            inputs.push(self.operand(c)?);
        }
        Ok(inputs)
    }

    fn linear(&mut self, c: &mut Cursor<'_>) -> Result<(OpKind, Vec<Operand>)> {
        let inputs = self.operands(c)?;
        let matrix = self.matrix(c)?;
        let mut linear = Linear {
            matrix,
            bias: None,
            layout: Layout::Rows,
            scale: 1.0,
            role: Role::Linear,
        };
        loop {
            if c.eat("bias") {
                c.expect("(")?;
                linear.bias = Some(self.weight_ref(c)?);
            } else if c.eat("layout") {
                c.expect("(")?;
                if c.eat("columns") {
                    linear.layout = Layout::Columns;
                } else {
                    c.expect("channels")?;
                    c.expect(",")?;
                    linear.layout = Layout::Channels(c.integer()?);
                }
            } else if c.eat("scale") {
                c.expect("(")?;
                let at = c.position();
                let parsed = c.number().parse();
                linear.scale = parsed.map_err(|_| c.error_at(at, "expected a number"))?;
            } else if c.eat("role") {
                c.expect("(")?;
                let at = c.position();
                let word = c.word();
                let unknown = || c.error_at(at, format!("`{word}` is no role"));
                linear.role = Role::from_name(word).ok_or_else(unknown)?;
            } else {
                return Ok((OpKind::Linear(linear), inputs));
            }
            c.expect(")")?;
        }
    }

    fn moe(&mut self, c: &mut Cursor<'_>) -> Result<(OpKind, Vec<Operand>)> {
        let inputs = self.operands(c)?;
        c.expect("{")?;
        c.expect("top_k")?;
        c.expect("=")?;
        let top_k = c.integer()?;
        c.expect(",")?;
        c.expect("normalize")?;
        c.expect("=")?;
        let normalize = c.eat("true");
        if !normalize {
            c.expect("false")?;
        }
        c.expect("}")?;
        c.expect("experts")?;
        let mut experts = Vec::new();
        c.list("[", "]", |c| {
            c.expect("region")?;
            experts.push(self.region(c)?);
            Ok(())
        })?;
        let moe = Moe {
            top_k,
            normalize,
            experts,
        };
        Ok((OpKind::Moe(moe), inputs))
    }

    fn onnx(&mut self, c: &mut Cursor<'_>, word: &str) -> Result<(OpKind, Vec<Operand>)> {
        let mut op = OnnxOp {
            domain: String::new(),
            op_type: word.trim_start_matches("onnx.").to_string(),
            overload: String::new(),
            attrs: Attrs::new(),
        };
        if op.op_type.is_empty() && c.peek() == Some(b'"') {
            op.op_type = c.name()?;
            let next = c.position();
            let rest = c.word();
            match rest.strip_prefix('.') {
                Some("") => op.domain = std::mem::replace(&mut op.op_type, c.name()?),
                Some(name) => op.domain = std::mem::replace(&mut op.op_type, name.to_string()),
                None if rest.is_empty() => {}
                None => return Err(c.error_at(next, "expected `.` and the op's name")),
            }
        }
        if c.eat("!") {
            op.overload = c.name()?;
        }
        let mut inputs = Vec::new();
        c.list("(", ")", |c| {
            inputs.push(self.operand(c)?);
            Ok(())
        })?;
        if c.peek() == Some(b'{') {
            op.attrs = self.dict(c)?;
        }
        Ok((OpKind::Onnx(op), inputs))
    }

    fn native(
        &mut self,
        c: &mut Cursor<'_>,
        word: &str,
        at: usize,
    ) -> Result<(OpKind, Vec<Operand>)> {
        let inputs = self.operands(c)?;
        let native: Native =
            tagged(word, fields(c)?).map_err(|e| c.error_at(at, format!("{word}: {e}")))?;
        Ok((OpKind::Native(native), inputs))
    }

    fn grad(
        &mut self,
        c: &mut Cursor<'_>,
        word: &str,
        at: usize,
    ) -> Result<(OpKind, Vec<Operand>)> {
        let inputs = self.operands(c)?;
        let fields = fields(c)?;
        let native = word.strip_prefix("grad.").unwrap_or("");
        let kind = match tagged::<Training>(word, fields.clone()) {
            Ok(training) => GradKind::Op(training),
            Err(error) => match tagged::<Native>(native, fields) {
                Ok(native) => GradKind::Of(native),
                Err(other) => {
                    let known = !other.to_string().contains("unknown variant");
                    let error = if known { other } else { error };
                    return Err(c.error_at(at, format!("{word}: {error}")));
                }
            },
        };
        let has_matrix = matches!(&kind, GradKind::Op(training) if training.has_matrix());
        let matrix = has_matrix.then(|| self.matrix(c)).transpose()?;
        let mut experts = Vec::new();
        if matches!(kind, GradKind::Op(Training::Moe { .. })) {
            c.expect("experts")?;
            c.list("[", "]", |c| {
                c.expect("region")?;
                experts.push(self.region(c)?);
                Ok(())
            })?;
        }
        let grad = Grad {
            kind,
            matrix,
            experts,
        };
        Ok((OpKind::Grad(Box::new(grad)), inputs))
    }
}

/// The fields of a native op, if any stand here.
fn fields(c: &mut Cursor<'_>) -> Result<serde_json::Map<String, serde_json::Value>> {
    match c.peek() {
        Some(b'{') => json_dict(c, 0),
        _ => Ok(serde_json::Map::new()),
    }
}

/// An op from its name and its fields.
fn tagged<T: serde::de::DeserializeOwned>(
    word: &str,
    mut fields: serde_json::Map<String, serde_json::Value>,
) -> serde_json::Result<T> {
    let tag = serde_json::Value::String(word.to_string());
    fields.insert("op".to_string(), tag);
    serde_json::from_value(serde_json::Value::Object(fields))
}

/// A result's name, kept as text until the op itself has been read.
enum ResultName {
    None,
    At(String),
}

impl ResultName {
    fn skip(c: &mut Cursor<'_>) -> Result<Self> {
        if c.eat("_") {
            return Ok(ResultName::None);
        }
        c.expect("%")?;
        if c.peek().is_some_and(|b| b.is_ascii_digit()) {
            let number: u32 = c.integer()?;
            return Ok(ResultName::At(format!("%{number}")));
        }
        let name = c.name()?;
        Ok(ResultName::At(format!(
            "%{}",
            super::print::quoted(name.as_bytes())
        )))
    }
}

pub(super) fn json_dict(
    c: &mut Cursor<'_>,
    depth: usize,
) -> Result<serde_json::Map<String, serde_json::Value>> {
    let mut fields = serde_json::Map::new();
    if depth > 4 {
        return Err(c.error("nested too deep"));
    }
    c.list("{", "}", |c| {
        let name = c.name()?;
        c.expect("=")?;
        let value = match c.peek() {
            Some(b'{') => serde_json::Value::Object(json_dict(c, depth + 1)?),
            Some(b'"') => {
                let text = c.string()?;
                serde_json::Value::String(String::from_utf8_lossy(&text).into_owned())
            }
            _ => {
                let at = c.position();
                let text = c.number();
                let bad = |_| c.error_at(at, "expected a number, a string or true/false");
                serde_json::from_str(text).map_err(bad)?
            }
        };
        fields.insert(name, value);
        Ok(())
    })?;
    Ok(fields)
}
