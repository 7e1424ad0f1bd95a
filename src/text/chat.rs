//! Chat templates: a conversation as the text that a model was trained on.

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use minijinja::Value;
use serde_json::Value as Json;

use super::special::Special;
use super::{Result, TextError, files, template};

/// What one side said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// `system`, `user` or `assistant`.
    pub role: &'static str,
    /// What was said.
    pub content: String,
}

impl Message {
    /// What the rules of the conversation are.
    pub fn system(content: impl Into<String>) -> Self {
        Self {
            role: "system",
            content: content.into(),
        }
    }

    /// What the user says.
    pub fn user(content: impl Into<String>) -> Self {
        Self {
            role: "user",
            content: content.into(),
        }
    }

    /// What the model said.
    pub fn assistant(content: impl Into<String>) -> Self {
        Self {
            role: "assistant",
            content: content.into(),
        }
    }
}

/// A model's chat template, in Jinja.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChatTemplate {
    source: String,
    path: PathBuf,
    tokens: Vec<(String, String)>,
}

impl ChatTemplate {
    /// Looks for the template of a folder: `chat_template.jinja`, then `chat_template.json`, then
    /// `chat_template` in `tokenizer_config.json`; of several named ones, `default`.
    ///
    /// # Errors
    /// There is none; a file can't be read or understood.
    pub fn open(folder: &Path, special: &Special) -> Result<Self> {
        let path = folder.join("chat_template.jinja");
        if let Some(source) = files::text(&path)? {
            return Self::new(&path, source, special);
        }
        for name in ["chat_template.json", "tokenizer_config.json"] {
            let path = folder.join(name);
            let Some(object) = files::object(&path)? else {
                continue;
            };
            let found = select(object.get("chat_template"));
            if let Some(source) = found.map_err(|problem| TextError::file(&path, problem))? {
                return Self::new(&path, source.to_owned(), special);
            }
        }
        Err(TextError::NoChat(folder.to_path_buf()))
    }

    /// A template from its source; `path` is for messages.
    ///
    /// # Errors
    /// The source is no Jinja.
    pub fn new(path: &Path, source: String, special: &Special) -> Result<Self> {
        let bad = |problem| TextError::Template {
            path: path.to_path_buf(),
            problem,
        };
        template::check(&source).map_err(bad)?;
        Ok(Self {
            source,
            path: path.to_path_buf(),
            tokens: special.tokens.clone().into_iter().collect(),
        })
    }

    /// The text of a conversation, up to where the assistant is to speak.
    ///
    /// Dates that the template asks for are those of `now`, in UTC.
    ///
    /// # Errors
    /// The template refuses the conversation, as some do a system message, or doesn't end in time.
    pub fn render(&self, messages: &[Message], now: SystemTime) -> Result<String> {
        self.spell(messages, now, true)
    }

    /// The text of a conversation that ends with its last message.
    ///
    /// # Errors
    /// As [`Self::render`].
    pub fn render_ended(&self, messages: &[Message], now: SystemTime) -> Result<String> {
        self.spell(messages, now, false)
    }

    fn spell(&self, messages: &[Message], now: SystemTime, asks: bool) -> Result<String> {
        let messages: Vec<Value> = messages
            .iter()
            .map(|m| Value::from_pairs([("role", m.role), ("content", m.content.as_str())]))
            .collect();
        let tokens = self
            .tokens
            .iter()
            .map(|(k, v)| (k.clone(), Value::from(v.as_str())));
        // `transformers` passes on that there are no tools and documents; templates ask `is not none`.
        let given = [
            ("messages", Value::from(messages)),
            ("add_generation_prompt", Value::from(asks)),
            ("tools", Value::from(())),
            ("documents", Value::from(())),
        ];
        let given = given.map(|(key, value)| (key.to_owned(), value));
        let values = Value::from_pairs(tokens.chain(given));
        template::render(&self.source, values, now).map_err(|problem| TextError::Template {
            path: self.path.clone(),
            problem,
        })
    }
}

/// The template in a field that is a string, or a list of named ones.
fn select(field: Option<&Json>) -> Result<Option<&str>, String> {
    match field {
        None | Some(Json::Null) => Ok(None),
        Some(Json::String(source)) => Ok(Some(source)),
        Some(Json::Array(list)) => {
            let name = |one: &Json| one.get("name").and_then(Json::as_str) == Some("default");
            let default = list.iter().find(|one| name(one));
            let source = default.and_then(|one| one.get("template")?.as_str());
            source
                .map(Some)
                .ok_or_else(|| "`chat_template` has none that is named `default`".into())
        }
        Some(_) => Err("`chat_template` is neither text nor a list of named templates".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const CHATML: &str = "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\\n' + \
        message['content'] + '<|im_end|>' + '\\n'}}{% endfor %}{% if add_generation_prompt %}\
        {{ '<|im_start|>assistant\\n' }}{% endif %}";
    const STRICT: &str = "{{ bos_token }}{% for message in messages %}\
        {% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}\
        {{ raise_exception('Conversation roles must alternate user/assistant') }}{% endif %}\
        {% if message['role'] == 'user' %}{{ '[INST] ' + message['content'].strip() + ' [/INST]' }}\
        {% else %}{{ ' ' + message['content'] + eos_token }}{% endif %}{% endfor %}\
        {% if tools is not none %}TOOLS{% endif %}";

    fn special() -> Special {
        let token = |key: &str, text: &str| (key.to_owned(), text.to_owned());
        Special {
            tokens: [token("bos_token", "<s>"), token("eos_token", "</s>")].into(),
            ..Special::default()
        }
    }

    fn render(source: &str, messages: &[Message]) -> Result<String> {
        let path = Path::new("m/chat_template.jinja");
        ChatTemplate::new(path, source.into(), &special())?.render(messages, SystemTime::UNIX_EPOCH)
    }

    #[test]
    fn conversations_are_spelled_out() {
        let messages = [Message::system("Be brief."), Message::user("Hi <&> ✓")];
        assert_eq!(
            render(CHATML, &messages).expect("rendered"),
            "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi <&> ✓<|im_end|>\n<|im_start|>assistant\n"
        );
        let messages = [
            Message::user("a "),
            Message::assistant("b"),
            Message::user("c"),
        ];
        let text = render(STRICT, &messages).expect("rendered");
        assert_eq!(text, "<s>[INST] a [/INST] b</s>[INST] c [/INST]");
    }

    #[test]
    fn a_refusal_says_why() {
        let refusal = render(STRICT, &[Message::system("x")]).expect_err("no system role");
        let message = refusal.to_string();
        assert!(
            message.starts_with("m/chat_template.jinja: the chat template fails"),
            "{message}"
        );
        assert!(
            message.contains("must alternate") && message.contains("line 1"),
            "{message}"
        );
    }

    fn open(files: &[(&str, &str)]) -> Result<String> {
        let dir = tempfile::tempdir().expect("a scratch folder");
        for (name, content) in files {
            std::fs::write(dir.path().join(name), content).expect("written");
        }
        let template = ChatTemplate::open(dir.path(), &special())?;
        template.render(&[Message::user("x")], SystemTime::UNIX_EPOCH)
    }

    #[test]
    fn the_first_that_is_there_counts() {
        let config = (
            "tokenizer_config.json",
            r#"{"chat_template": "config {{ messages[0].content }}"}"#,
        );
        let json = ("chat_template.json", r#"{"chat_template": "json"}"#);
        let jinja = ("chat_template.jinja", "jinja");
        assert_eq!(open(&[config]).expect("rendered"), "config x");
        assert_eq!(open(&[config, json]).expect("rendered"), "json");
        assert_eq!(open(&[config, json, jinja]).expect("rendered"), "jinja");
        let named = r#"{"chat_template": [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]}"#;
        assert_eq!(
            open(&[("tokenizer_config.json", named)]).expect("rendered"),
            "d"
        );
    }

    #[test]
    fn a_model_without_one_is_told() {
        let error = open(&[("tokenizer_config.json", "{}")]).expect_err("no template");
        assert!(matches!(error, TextError::NoChat(_)));
        assert!(error.help().contains("leave --chat out"));
        for bad in ["5", r#"[{"name": "x", "template": "t"}]"#, r#""{% if %}""#] {
            let config = format!(r#"{{"chat_template": {bad}}}"#);
            let error = open(&[("tokenizer_config.json", &config)]).expect_err(bad);
            assert!(
                error.to_string().contains("tokenizer_config.json"),
                "{error}"
            );
        }
    }

    proptest! {
        #[test]
        fn what_is_said_is_kept(text in "\\PC{0,40}") {
            let out = render("{{ messages[0]['content'] }}", &[Message::user(text.clone())]);
            prop_assert_eq!(out.unwrap(), text);
        }
    }
}
