//! Terms of plugins' kinds → the nodes that the plugin gives, or the dense matrix.

use std::collections::HashMap;

use serde_json::Value;

use super::ExportError;
use super::lower::{Lowerer, Site, no_form};
use super::recipe::Form;
use super::terms::Part;
use crate::ir::{Attr, Float, Matrix, Operand, Term};
use crate::pass::kind::{self, OnnxForm, OnnxNode};
use crate::pass::terms::TermData;
use crate::store::Reader;
use crate::weights::{DType, FileCache};

impl Lowerer<'_> {
    /// The matrix of a plugin's term as a value, `[in, out]` if transposed, of the activations' type.
    pub(super) fn custom(
        &mut self,
        site: &mut Site,
        matrix: &Matrix,
        term: &Term,
        part: Part,
        transposed: bool,
    ) -> Result<Operand, ExportError> {
        let files = FileCache::default();
        let data = Reader::new(&files).term(self.source, matrix, term)?;
        let TermData::Custom(custom) = data else {
            return Err(no_form(site, "a term that is no plugin's"));
        };
        let refused = |e: crate::pass::PassError| no_form(site, &format!("{}: {e}", custom.kind));
        let kind = kind::needed(&custom.kind).map_err(refused)?;
        match kind.onnx(&custom.view()).map_err(refused)? {
            Some(form) => self.custom_nodes(site, &custom.kind, form, part, transposed),
            None => {
                self.notes.push(format!(
                    "{}: terms of the kind {} are written as dense matrices: their plugin gives no ONNX form",
                    site.name, custom.kind
                ));
                let dtype = site.dtype;
                let (rows, cols) = (matrix.out_features as usize, matrix.in_features as usize);
                let dims = match transposed {
                    true => [cols, rows],
                    false => [rows, cols],
                };
                let form = Form::Floats { dtype, transposed };
                let table = self.made(site, "dense", dtype, &dims, part.recipe(site, form));
                Ok(Operand::Weight(table))
            }
        }
    }

    fn custom_nodes(
        &mut self,
        site: &mut Site,
        kind: &str,
        form: OnnxForm,
        part: Part,
        transposed: bool,
    ) -> Result<Operand, ExportError> {
        let mut values: HashMap<String, Operand> = HashMap::new();
        let opset = i64::try_from(form.opset).unwrap_or(i64::MAX);
        self.opset = self.opset.max(opset);
        for (constant, tensor) in form.tensors.iter().enumerate() {
            let dims: Vec<usize> = tensor.shape.iter().map(|&n| n as usize).collect();
            let recipe = part.recipe(site, Form::Custom { constant });
            let id = self.made(site, &tensor.name, tensor.dtype, &dims, recipe);
            values.insert(tensor.name.clone(), Operand::Weight(id));
        }
        for node in &form.nodes {
            let inputs = node.inputs.iter().map(|name| {
                let known = values.get(name).copied();
                let text = format!(
                    "{kind}: node {} reads `{name}`, which nothing makes",
                    node.op_type
                );
                known.ok_or_else(|| no_form(site, &text))
            });
            let inputs = inputs.collect::<Result<Vec<_>, _>>()?;
            let attrs = attributes(node).ok_or_else(|| {
                let text = format!(
                    "{kind}: node {} has an attribute of no known type",
                    node.op_type
                );
                no_form(site, &text)
            })?;
            let result = self.standard(site, &node.op_type, inputs, attrs);
            values.insert(node.output.clone(), result);
        }
        let table = values.get(&form.output).copied();
        let text = format!("{kind}: nothing makes the output `{}`", form.output);
        let mut table = table.ok_or_else(|| no_form(site, &text))?;
        if transposed {
            let perm = vec![("perm", Attr::Ints(vec![1, 0]))];
            table = self.standard(site, "Transpose", vec![table], perm);
        }
        Ok(self.cast(site, table, DType::F32))
    }
}

fn attributes(node: &OnnxNode) -> Option<Vec<(&str, Attr)>> {
    let mut attrs = Vec::new();
    for (name, value) in &node.attrs {
        let attr = match value {
            Value::Number(n) => match n.as_i64() {
                Some(n) => Attr::Int(n),
                None => Attr::Float(Float(n.as_f64()? as f32)),
            },
            Value::String(text) => Attr::str(text),
            Value::Array(list) => {
                let ints = list.iter().map(Value::as_i64);
                Attr::Ints(ints.collect::<Option<Vec<_>>>()?)
            }
            _ => return None,
        };
        attrs.push((name.as_str(), attr));
    }
    Some(attrs)
}
