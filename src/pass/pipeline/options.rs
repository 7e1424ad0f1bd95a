//! A pass's options: from text to JSON, checked against the pass's own schema.

use super::error::{did_you_mean, nearest};
use super::{PassCall, PassOption, SyntaxError};
use serde_json::{Map, Number, Value};

/// The options as the JSON object that a pass's options are read from.
///
/// A flag is `true`; numbers, booleans and percentages (`0.5%` is 0.005) become JSON's; the rest is text.
pub fn options_json(options: &[PassOption]) -> Map<String, Value> {
    options
        .iter()
        .map(|option| (option.key.clone(), value_json(option.value.as_deref())))
        .collect()
}

fn value_json(value: Option<&str>) -> Value {
    let Some(text) = value else {
        return Value::Bool(true);
    };
    match text {
        "true" => return Value::Bool(true),
        "false" => return Value::Bool(false),
        _ => {}
    }
    if let Ok(number) = text.parse::<u64>() {
        return Value::Number(number.into());
    }
    if let Ok(number) = text.parse::<i64>() {
        return Value::Number(number.into());
    }
    let number = match text.strip_suffix('%') {
        Some(percent) => decimal(percent.trim_end()).map(|value| value / 100.0),
        None => decimal(text),
    };
    number
        .and_then(Number::from_f64)
        .map_or_else(|| Value::String(text.into()), Value::Number)
}

/// A number as people write them; `inf` and `nan` stay text.
fn decimal(text: &str) -> Option<f64> {
    let numeric = text.starts_with(|c: char| c.is_ascii_digit() || matches!(c, '-' | '+' | '.'));
    text.parse()
        .ok()
        .filter(|value: &f64| numeric && value.is_finite())
}

/// What a pass's schema says of one option.
#[derive(Debug, Clone, PartialEq)]
pub struct OptionDoc {
    /// The key.
    pub name: String,
    /// What values it takes, in words.
    pub accepts: String,
    /// The value where it isn't given, if the schema states one.
    pub default: Option<Value>,
    /// What it does.
    pub doc: String,
}

/// The options that a schema (JSON Schema, as schemars makes it) describes, in its order.
pub fn option_docs(schema: &Value) -> Vec<OptionDoc> {
    let Some(properties) = schema.get("properties").and_then(Value::as_object) else {
        return Vec::new();
    };
    let describe = |(name, property): (&String, &Value)| {
        let target = resolve(schema, property);
        let doc = [property, target]
            .into_iter()
            .find_map(|at| at.get("description").and_then(Value::as_str));
        let default = property.get("default").filter(|value| !value.is_null());
        OptionDoc {
            name: name.clone(),
            accepts: accepts(schema, property),
            default: default.map(|value| tidy_float(value, property)),
            doc: doc
                .unwrap_or_default()
                .split_whitespace()
                .collect::<Vec<_>>()
                .join(" "),
        }
    };
    properties.iter().map(describe).collect()
}

/// What a schema says of an option that can't be: a name that no pipeline can write, or a default that the
/// option does not take. None where all is well.
pub fn contradiction(schema: &Value) -> Option<String> {
    let properties = schema.get("properties").and_then(Value::as_object)?;
    properties.iter().find_map(|(name, property)| {
        if !crate::ir::is_word(name) {
            let what = "names are words of letters, digits and `_`";
            return Some(format!(
                "option `{name}` can't be written in a pipeline: {what}"
            ));
        }
        let default = property.get("default").filter(|value| !value.is_null())?;
        let members = alternatives(schema, property);
        let taken = members.is_empty() || members.iter().any(|member| fits(default, member));
        (!taken).then(|| {
            let takes = accepts(schema, property);
            format!("option `{name}` takes {takes}, and its default is {default}")
        })
    })
}

/// An f32 default arrives widened (0.005 as 0.004999999888241291); shown as it was written.
fn tidy_float(value: &Value, property: &Value) -> Value {
    let single = property.get("format").and_then(Value::as_str) == Some("float");
    match value.as_f64() {
        Some(wide) if single => (wide as f32)
            .to_string()
            .parse()
            .ok()
            .and_then(Number::from_f64)
            .map_or_else(|| value.clone(), Value::Number),
        _ => value.clone(),
    }
}

/// Follows `$ref` (bounded: a schema could refer to itself).
fn resolve<'a>(schema: &'a Value, mut at: &'a Value) -> &'a Value {
    for _ in 0..8 {
        let Some(name) = at.get("$ref").and_then(Value::as_str) else {
            break;
        };
        let path = name.strip_prefix('#').unwrap_or(name);
        match schema.pointer(path) {
            Some(next) => at = next,
            None => break,
        }
    }
    at
}

/// The alternatives of a property: itself, or the members of its `anyOf`/`oneOf`, null left out.
fn alternatives<'a>(schema: &'a Value, property: &'a Value) -> Vec<&'a Value> {
    let target = resolve(schema, property);
    let members = ["anyOf", "oneOf"]
        .iter()
        .find_map(|key| target.get(key).and_then(Value::as_array));
    let mut found = Vec::new();
    match members {
        None => found.push(target),
        Some(members) => {
            for member in members {
                let member = resolve(schema, member);
                match ["anyOf", "oneOf"]
                    .iter()
                    .find_map(|key| member.get(key).and_then(Value::as_array))
                {
                    Some(inner) => found.extend(inner.iter().map(|inner| resolve(schema, inner))),
                    None => found.push(member),
                }
            }
        }
    }
    found.retain(|member| member.get("type").and_then(Value::as_str) != Some("null"));
    found
}

/// The names that an enumeration takes.
fn names(member: &Value) -> Vec<&str> {
    if let Some(name) = member.get("const").and_then(Value::as_str) {
        return vec![name];
    }
    let listed = member.get("enum").and_then(Value::as_array);
    listed.map_or_else(Vec::new, |list| {
        list.iter().filter_map(Value::as_str).collect()
    })
}

/// The JSON types of a member, null left out.
fn types(member: &Value) -> Vec<&str> {
    match member.get("type") {
        Some(Value::String(one)) => vec![one.as_str()],
        Some(Value::Array(several)) => several
            .iter()
            .filter_map(Value::as_str)
            .filter(|t| *t != "null")
            .collect(),
        _ => Vec::new(),
    }
}

/// What a property takes, in words: `whole number`, `f16 | int8 | int4`, …
fn accepts(schema: &Value, property: &Value) -> String {
    let mut words: Vec<String> = Vec::new();
    for member in alternatives(schema, property) {
        let named = names(member);
        if !named.is_empty() {
            words.extend(named.into_iter().map(str::to_owned));
            continue;
        }
        if let Some(value) = member.get("const") {
            words.push(value.to_string());
        } else if let Some(list) = member.get("enum").and_then(Value::as_array) {
            words.extend(list.iter().map(Value::to_string));
        } else {
            words.extend(
                types(member)
                    .into_iter()
                    .map(|kind| type_words(kind, member)),
            );
        }
    }
    words.dedup();
    if words.is_empty() {
        "value".into()
    } else {
        words.join(" | ")
    }
}

fn type_words(kind: &str, member: &Value) -> String {
    let bound = |key: &str| member.get(key).and_then(Value::as_f64);
    let name = match kind {
        "integer" => "whole number",
        "number" => "number",
        "boolean" => "true or false",
        "string" => "text",
        other => other,
    };
    match (bound("minimum"), bound("maximum")) {
        (Some(low), Some(high)) => format!("{name} from {low} to {high}"),
        (Some(low), None) if low > 0.0 => format!("{name} from {low}"),
        (None, Some(high)) => format!("{name} up to {high}"),
        _ => name.into(),
    }
}

/// Checks a call's options against the pass's schema: keys, types, ranges and names.
///
/// What it passes may still be refused by the pass itself, which knows more than a schema says.
///
/// # Errors
/// A [`SyntaxError`] at the first option that does not fit, with what the pass takes.
pub fn check_options(call: &PassCall, schema: &Value) -> Result<(), SyntaxError> {
    let none = Map::new();
    let properties = schema
        .get("properties")
        .and_then(Value::as_object)
        .unwrap_or(&none);
    for option in &call.options {
        let Some(property) = properties.get(&option.key) else {
            let known: Vec<&str> = properties.keys().map(String::as_str).collect();
            let help = if known.is_empty() {
                format!("`{}` takes no options", call.name)
            } else {
                format!(
                    "{}; `hlrc-opt passes {}` describes them",
                    did_you_mean(&option.key, &format!("options of `{}`", call.name), &known),
                    call.name
                )
            };
            return Err(option.span.error(
                format!("`{}` has no option `{}`", call.name, option.key),
                help,
            ));
        };
        check_value(call, option, schema, property)?;
    }
    Ok(())
}

fn check_value(
    call: &PassCall,
    option: &PassOption,
    schema: &Value,
    property: &Value,
) -> Result<(), SyntaxError> {
    let members = alternatives(schema, property);
    let value = value_json(option.value.as_deref());
    if members.is_empty() || members.iter().any(|member| fits(&value, member)) {
        return Ok(());
    }
    let written = option
        .value
        .as_deref()
        .map_or_else(|| "no value".to_owned(), |text| format!("`{text}`"));
    let known: Vec<&str> = members.iter().flat_map(|member| names(member)).collect();
    let slip = option
        .value
        .as_deref()
        .and_then(|text| nearest(text, known.iter().copied()));
    let help = match slip {
        Some(name) => format!("did you mean `{name}`?"),
        None => format!("as `hlrc-opt passes {}` says", call.name),
    };
    Err(option.span.error(
        format!(
            "`{}` takes {}, not {written}",
            option.key,
            accepts(schema, property)
        ),
        help,
    ))
}

fn fits(value: &Value, member: &Value) -> bool {
    if let Some(constant) = member.get("const") {
        return constant == value;
    }
    if let Some(list) = member.get("enum").and_then(Value::as_array) {
        return list.contains(value);
    }
    let types = types(member);
    let typed = types.is_empty()
        || types.iter().any(|kind| match *kind {
            "integer" => value.is_u64() || value.is_i64(),
            "number" => value.is_number(),
            "boolean" => value.is_boolean(),
            "string" => value.is_string(),
            _ => true,
        });
    let within = value.as_f64().is_none_or(|number| {
        let bound = |key: &str| member.get(key).and_then(Value::as_f64);
        bound("minimum").is_none_or(|low| number >= low)
            && bound("maximum").is_none_or(|high| number <= high)
            && bound("exclusiveMinimum").is_none_or(|low| number > low)
            && bound("exclusiveMaximum").is_none_or(|high| number < high)
    });
    typed && within
}

/// The call with the words behind a list's first one joined to it, as in
/// `{params=lowrank,scales steps=300}`.
///
/// The syntax takes `scales` for a flag; that the schema has no such option and marks the one before it
/// with `"list": true` says otherwise.
pub fn with_lists(call: &PassCall, schema: &Value) -> PassCall {
    let property = |key: &str| schema.get("properties").and_then(|p| p.get(key));
    let is_list = |key: &str| {
        let marked = property(key).and_then(|p| p.get("list"));
        marked.and_then(Value::as_bool) == Some(true)
    };
    let mut options: Vec<PassOption> = Vec::with_capacity(call.options.len());
    for option in &call.options {
        let word = option.value.is_none() && property(&option.key).is_none();
        match options.last_mut().filter(|last| word && is_list(&last.key)) {
            Some(PassOption {
                value: Some(list), ..
            }) => {
                list.push(',');
                list.push_str(option.span.text());
            }
            _ => options.push(option.clone()),
        }
    }
    PassCall {
        options,
        ..call.clone()
    }
}

/// The call with every default of the schema written out, behind the options that were given.
pub fn with_defaults(call: &PassCall, schema: &Value) -> PassCall {
    let mut full = call.clone();
    for option in option_docs(schema) {
        if full.options.iter().any(|given| given.key == option.name) {
            continue;
        }
        let value = match option.default {
            Some(Value::String(text)) => text,
            Some(value @ (Value::Bool(_) | Value::Number(_))) => value.to_string(),
            _ => continue,
        };
        full.options.push(PassOption {
            key: option.name,
            value: Some(value),
            span: call.span.clone(),
        });
    }
    full
}
