//! Jinja as chat templates use it: the settings, functions and filters that `transformers` gives them.
//!
//! A template comes with a model and is not trusted: it reads nothing but its values, and it is ended
//! where it takes too long or makes too much.

use std::io::{Error as IoError, Write};
use std::sync::mpsc;
use std::time::{Duration, Instant, SystemTime};

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, ValueKind};
use minijinja::{AutoEscape, Environment, Error, ErrorKind, Value};
use minijinja_contrib::pycompat::unknown_method_callback;

use super::calendar;
use crate::report::resources;

/// Nesting of lists and maps that JSON is written of.
const DEPTH: usize = 64;
/// Spaces of indentation that a template may ask for.
const INDENT: usize = 16;
/// What a template may take.
#[derive(Clone, Copy, Debug)]
struct Limits {
    /// Steps, and pieces of 64 values or bytes that they work on.
    steps: u64,
    /// Until its text is there.
    time: Duration,
    /// Bytes of its text.
    length: usize,
    /// Bytes by which the process may grow meanwhile.
    memory: u64,
}

/// Far beyond what a conversation needs.
const LIMITS: Limits = Limits {
    steps: 50_000_000,
    time: Duration::from_secs(5),
    length: 64 << 20,
    memory: 1 << 30,
};
/// Stack of the thread that renders; values nested as deep as the limits allow are dropped on it.
const STACK: usize = 256 << 20;

/// Renders a template; the error says what, and in which line.
///
/// This happens on a thread of its own. Steps are counted, so that a loop ends; what takes too long in
/// another way is left behind: it can't be ended, and the caller ends the process.
pub(super) fn render(source: &str, values: Value, now: SystemTime) -> Result<String, String> {
    within(LIMITS, source, values, now)
}

fn within(limits: Limits, source: &str, values: Value, now: SystemTime) -> Result<String, String> {
    let source = plain(source);
    let (sender, receiver) = mpsc::channel();
    let work = move || {
        // Nobody waits any more where the limits were passed.
        let _ = sender.send(rendered(&source, values, now, limits));
    };
    let thread = std::thread::Builder::new()
        .name("chat-template".into())
        .stack_size(STACK);
    thread
        .spawn(work)
        .map_err(|error| format!("no thread to render it: {error}"))?;
    let (start, before) = (Instant::now(), resources::peak_rss());
    loop {
        match receiver.recv_timeout(Duration::from_millis(20)) {
            Ok(done) => return done,
            Err(mpsc::RecvTimeoutError::Disconnected) => return Err("it breaks its reader".into()),
            Err(mpsc::RecvTimeoutError::Timeout) => {}
        }
        if start.elapsed() > limits.time {
            return Err(format!("it takes longer than {:?}", limits.time));
        }
        if resources::peak_rss().saturating_sub(before) > limits.memory {
            return Err("it takes too much memory".into());
        }
    }
}

fn rendered(
    source: &str,
    values: Value,
    now: SystemTime,
    limits: Limits,
) -> Result<String, String> {
    let mut environment = environment(now).map_err(|error| told(&error))?;
    environment.set_fuel(Some(limits.steps));
    let template = environment.template_from_named_str("chat_template", source);
    let template = template.map_err(|error| told(&error))?;
    let mut out = Limited {
        text: Vec::new(),
        length: limits.length,
    };
    template
        .render_captured_to(values, &mut out)
        .map_err(|error| told(&error))?;
    String::from_utf8(out.text).map_err(|error| error.to_string())
}

/// Text up to a length.
struct Limited {
    text: Vec<u8>,
    length: usize,
}

impl Write for Limited {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if self.text.len().saturating_add(bytes.len()) > self.length {
            return Err(IoError::other("its text is too long"));
        }
        self.text.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Whether a template can be read at all.
pub(super) fn check(source: &str) -> Result<(), String> {
    let source = plain(source);
    let environment = environment(SystemTime::UNIX_EPOCH).map_err(|error| told(&error))?;
    let template = environment.template_from_named_str("chat_template", &source);
    template.map(|_| ()).map_err(|error| told(&error))
}

fn environment<'s>(now: SystemTime) -> Result<Environment<'s>, Error> {
    let mut environment = Environment::new();
    let syntax = SyntaxConfig::builder()
        .trim_blocks(true)
        .lstrip_blocks(true)
        .build()?;
    environment.set_syntax(syntax);
    environment.set_auto_escape_callback(|_| AutoEscape::None);
    environment.set_unknown_method_callback(unknown_method_callback);
    environment.add_filter("tojson", tojson);
    environment.add_function("raise_exception", raise_exception);
    environment.add_function("strftime_now", move |form: String| {
        calendar::strftime(&form, now)
    });
    Ok(environment)
}

/// Templates mark what the assistant says for training: `{% generation %}`. It changes no text.
fn plain(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some((before, after)) = rest.split_once("{%") {
        out.push_str(before);
        out.push_str("{%");
        let Some((tag, behind)) = after.split_once("%}") else {
            rest = after;
            continue;
        };
        match tag.trim_matches(|c: char| c == '-' || c.is_whitespace()) {
            "generation" => out.push_str(&tag.replace("generation", "if true")),
            "endgeneration" => out.push_str(&tag.replace("endgeneration", "endif")),
            _ => out.push_str(tag),
        }
        out.push_str("%}");
        rest = behind;
    }
    out.push_str(rest);
    out
}

fn raise_exception(message: String) -> Result<Value, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, message))
}

/// An error in one line: what the template or its reader says, and where.
fn told(error: &Error) -> String {
    let source =
        std::error::Error::source(error).filter(|_| error.kind() == ErrorKind::WriteFailure);
    let what = match error.detail() {
        _ if error.kind() == ErrorKind::OutOfFuel => "it takes too many steps".to_owned(),
        _ if source.is_some() => source.map(ToString::to_string).unwrap_or_default(),
        Some(detail) if error.kind() == ErrorKind::InvalidOperation => detail.to_owned(),
        Some(detail) => format!("{}: {detail}", error.kind()),
        None => error.kind().to_string(),
    };
    match error.line() {
        Some(line) => format!("{what} (line {line})"),
        None => what,
    }
}

/// JSON as Python's `json.dumps` writes it; nothing is escaped for HTML.
fn tojson(value: &Value, args: Kwargs) -> Result<String, Error> {
    let indent = args.get::<Option<usize>>("indent")?;
    let ascii = args.get::<Option<bool>>("ensure_ascii")?;
    let sorted = args.get::<Option<bool>>("sort_keys")?;
    args.assert_all_used()?;
    let form = Form {
        indent,
        ascii: ascii == Some(true),
        sorted: sorted == Some(true),
    };
    if indent.is_some_and(|n| n > INDENT) {
        return Err(Error::new(
            ErrorKind::InvalidOperation,
            "tojson: the indentation is too large",
        ));
    }
    let mut out = String::new();
    json(value, form, 0, &mut out)?;
    Ok(out)
}

/// How JSON is written.
#[derive(Clone, Copy)]
struct Form {
    indent: Option<usize>,
    /// Letters beyond ASCII as `\u` and four hexadecimal digits.
    ascii: bool,
    /// Keys in order.
    sorted: bool,
}

fn json(value: &Value, form: Form, depth: usize, out: &mut String) -> Result<(), Error> {
    if depth > DEPTH {
        return Err(Error::new(
            ErrorKind::InvalidOperation,
            "tojson: nested too deep",
        ));
    }
    match value.kind() {
        ValueKind::Undefined | ValueKind::None => out.push_str("null"),
        ValueKind::Bool => out.push_str(if value.is_true() { "true" } else { "false" }),
        ValueKind::Number => out.push_str(&value.to_string()),
        ValueKind::Seq | ValueKind::Iterable => {
            let items = value.try_iter()?.map(|item| (None, item));
            container(items, ['[', ']'], form, depth, out)?;
        }
        ValueKind::Map => {
            let mut items = Vec::new();
            for key in value.try_iter()? {
                let item = value.get_item(&key)?;
                items.push((Some(key), item));
            }
            if form.sorted {
                items.sort_by_key(|(key, _)| key.as_ref().map(ToString::to_string));
            }
            container(items.into_iter(), ['{', '}'], form, depth, out)?;
        }
        ValueKind::Invalid => {
            return Err(Error::new(ErrorKind::InvalidOperation, value.to_string()));
        }
        _ => text(&value.to_string(), form.ascii, out),
    }
    Ok(())
}

fn container(
    items: impl Iterator<Item = (Option<Value>, Value)>,
    [open, close]: [char; 2],
    form: Form,
    depth: usize,
    out: &mut String,
) -> Result<(), Error> {
    let indent = form.indent;
    let line = |depth: usize, out: &mut String| {
        if let Some(indent) = indent {
            out.push('\n');
            out.extend(std::iter::repeat_n(' ', indent * depth));
        }
    };
    out.push(open);
    let mut empty = true;
    for (key, item) in items {
        if !empty {
            out.push_str(if indent.is_some() { "," } else { ", " });
        }
        empty = false;
        line(depth + 1, out);
        if let Some(key) = key {
            text(&key.to_string(), form.ascii, out);
            out.push_str(": ");
        }
        json(&item, form, depth + 1, out)?;
    }
    if !empty {
        line(depth, out);
    }
    out.push(close);
    Ok(())
}

fn text(text: &str, ascii: bool, out: &mut String) {
    // serde_json escapes what must be escaped and nothing else, as Python without ensure_ascii.
    let escaped = serde_json::Value::from(text).to_string();
    if !ascii {
        out.push_str(&escaped);
        return;
    }
    for letter in escaped.chars() {
        if letter.is_ascii() && letter != '\u{7f}' {
            out.push(letter);
            continue;
        }
        for unit in letter.encode_utf16(&mut [0; 2]) {
            out.push_str(&format!("\\u{unit:04x}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn run(source: &str) -> Result<String, String> {
        let call = Value::from_pairs([("name", "f<x>"), ("b", "2")]);
        let values = Value::from_pairs([("call", call), ("none", Value::from(()))]);
        render(source, values, SystemTime::UNIX_EPOCH)
    }

    fn ok(source: &str) -> String {
        run(source).expect(source)
    }

    #[test]
    fn json_is_pythons() {
        assert_eq!(
            ok("{{ {'k': [1, 2.5, true, none, 'é<\\n']} | tojson }}"),
            r#"{"k": [1, 2.5, true, null, "é<\n"]}"#
        );
        assert_eq!(ok("{{ [1, {}] | tojson(indent=2) }}"), "[\n  1,\n  {}\n]");
        assert_eq!(
            ok("{{ call.name | tojson(ensure_ascii=False) }}"),
            "\"f<x>\""
        );
        // Python's json.dumps of the same.
        assert_eq!(
            ok("{{ 'é😀z' | tojson(ensure_ascii=True) }}"),
            r#""\u00e9\ud83d\ude00z""#
        );
        let map = "{'b': 1, 'a': {'z': 1, 'y': 2}}";
        assert_eq!(
            ok(&format!("{{{{ {map} | tojson }}}}")),
            r#"{"b": 1, "a": {"z": 1, "y": 2}}"#
        );
        assert_eq!(
            ok(&format!("{{{{ {map} | tojson(sort_keys=True) }}}}")),
            r#"{"a": {"y": 2, "z": 1}, "b": 1}"#
        );
        let loops = format!("{{% for key, value in ({map}).items() %}}{{{{ key }}}}{{% endfor %}}");
        assert_eq!(ok(&loops), "ba");
        assert!(run("{{ 1 | tojson(indent=99) }}").is_err());
    }

    #[test]
    fn loops_break_and_end() {
        let first = "{% for x in [1, 2, 3] %}{{ x }}{% break %}{% endfor %}";
        assert_eq!(ok(first), "1");
        let long =
            "{% for a in range(9999) %}{% for b in range(9999) %}{{ b }}{% endfor %}{% endfor %}";
        let said = run(long).expect_err("endless");
        assert!(
            ["too many steps", "too long", "longer than"]
                .iter()
                .any(|end| said.contains(end)),
            "{said}"
        );
    }

    #[test]
    fn python_is_spoken() {
        assert_eq!(ok("{{ ' a b '.strip().split(' ')[-1].upper() }}"), "B");
        assert_eq!(
            ok("{% for k, v in call.items() %}{{ k }}{{ v }}{% endfor %}"),
            "namef<x>b2"
        );
        assert_eq!(ok("{{ [1, 2, 3][::-1] }}"), "[3, 2, 1]");
        assert_eq!(
            ok("{{ 'x'.startswith('x') and none is none and call is mapping }}"),
            "True"
        );
        assert_eq!(ok("{{ strftime_now('%d %b %Y') }}"), "01 Jan 1970");
    }

    #[test]
    fn blocks_leave_no_lines() {
        assert_eq!(ok("a\n  {% if true %}\nb\n  {% endif %}\nc\n"), "a\nb\nc");
        assert_eq!(
            ok("a {%- generation %}\nb{% endgeneration -%}\n c"),
            "ab c".replace(' ', "")
        );
        assert_eq!(ok("{{ 'generation' }}"), "generation");
    }

    #[test]
    fn errors_say_what_and_where() {
        let error = run("\n{{ raise_exception('roles must alternate') }}").expect_err("raised");
        assert_eq!(error, "roles must alternate (line 2)");
        assert!(run("{% if %}").expect_err("syntax").contains("line 1"));
        assert!(run("{{ nothing.at.all }}").is_err());
        assert!(check("{% for %}").is_err() && check("{{ fine }}").is_ok());
    }

    #[test]
    fn what_goes_beyond_its_limits_is_ended() {
        let end = |limits: Limits, source: &str| {
            let values = Value::from(());
            within(limits, source, values, SystemTime::UNIX_EPOCH).expect_err("beyond")
        };
        // Seconds of work, so that it doesn't outlive the tests by much.
        let long = "{% for i in range(99999) %}{% for j in range(300) %}{% endfor %}{% endfor %}";
        let time = Duration::from_millis(50);
        let steps = u64::MAX;
        let slow = Limits {
            time,
            steps,
            ..LIMITS
        };
        assert!(end(slow, long).contains("longer than 50ms"));
        // On a busy machine the clock may not end it before the count does.
        let patient = Limits {
            time: Duration::from_secs(600),
            ..LIMITS
        };
        let said = end(patient, long);
        assert!(said.contains("too many steps (line 1)"), "{said}");
        let flood = "{% for i in range(99999) %}{{ 'x' * 1000 }}{% endfor %}";
        assert!(end(LIMITS, flood).contains("too long"));
    }

    #[test]
    fn loops_are_left_and_gone_on_with() {
        let odd = "{% for i in range(9) %}{% if i % 2 == 0 %}{% continue %}{% endif %}\
                   {% if i > 6 %}{% break %}{% endif %}{{ i }}{% endfor %}";
        assert_eq!(ok(odd), "135");
    }

    #[test]
    fn deep_nests_are_dropped() {
        let deep = "{% set n = namespace(x=[]) %}{% for i in range(99999) %}{% set n.x = [n.x] %}{% endfor %}ok";
        assert_eq!(ok(deep), "ok");
        assert!(run(&deep.replace("ok", "{{ n.x | tojson }}")).is_err());
    }

    #[test]
    fn nothing_outside_can_be_read() {
        for source in [
            "{% include '/etc/hostname' %}",
            "{% import 'x' as x %}",
            "{% extends 'x' %}",
        ] {
            assert!(run(source).is_err(), "{source}");
        }
    }

    proptest! {
        #[test]
        fn no_template_panics(parts in prop::collection::vec(prop::sample::select(vec![
            "{{", "}}", "{%", "%}", "{%-", "-%}", "{#", "#}", " call", "[", "]", "(", ")", ".name", "|tojson", "'a'",
            " if ", " for x in ", "endfor", "endif", " set ns = namespace()", "1", "*", "~", "-", "é", "::", ",",
            " generation ", "endgeneration", " macro f() ", "endmacro", "{", "}", "\"",
        ]), 0..14)) {
            let _ = run(&parts.concat());
        }
    }
}
