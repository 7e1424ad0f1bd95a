//! From tokens to text as they come: whole characters, and nothing of a stop string.

/// Ids that are kept as the context of the next ones' text.
const CONTEXT: usize = 6;
/// The window slides once it has more ids than this.
const WINDOW: usize = 24;
/// The window slides at this many ids even where a character is open: nothing valid is so long.
const LIMIT: usize = 256;
const REPLACEMENT: char = '\u{fffd}';

/// What makes text of ids; special tokens are left out of it.
pub trait Decode {
    /// The text of these ids. Bytes that are no UTF-8 are U+FFFD.
    fn text(&self, ids: &[u32]) -> String;
}

/// Makes text of ids one by one.
///
/// The text of a token depends on the ones before it (a leading space, bytes of one character over
/// several tokens), so a short window of ids is decoded each time and what is new in it is given out.
/// What ends in an incomplete character waits for the next ids. Cost: two short decodings per token.
pub struct Detokenizer<'d, D: Decode + ?Sized> {
    decoder: &'d D,
    ids: Vec<u32>,
    /// The part of the window's text that was given out.
    shown: String,
}

impl<'d, D: Decode + ?Sized> Detokenizer<'d, D> {
    /// Starts behind a prompt.
    pub fn new(decoder: &'d D, prompt: &[u32]) -> Self {
        let start = prompt.len().saturating_sub(CONTEXT);
        let ids = prompt.get(start..).unwrap_or(&[]).to_vec();
        let shown = decoder.text(&ids);
        Self {
            decoder,
            ids,
            shown,
        }
    }

    /// Takes an id; gives the text that is complete now, often of this id, sometimes none.
    pub fn push(&mut self, id: u32) -> String {
        self.ids.push(id);
        let text = self.decoder.text(&self.ids);
        let complete = text.trim_end_matches(REPLACEMENT);
        let fresh = news(&self.shown, complete).to_owned();
        if !fresh.is_empty() {
            self.shown = complete.to_owned();
        }
        if self.ids.len() > WINDOW && complete.len() == text.len() {
            self.slide();
        }
        if self.ids.len() > LIMIT {
            let rest = self.finish();
            self.ids.clear();
            self.shown.clear();
            return fresh + &rest;
        }
        fresh
    }

    /// Gives what still waits: an incomplete character, as U+FFFD.
    pub fn finish(&mut self) -> String {
        let text = self.decoder.text(&self.ids);
        let rest = news(&self.shown, &text).to_owned();
        self.shown = text;
        rest
    }

    /// Forgets all but the last ids, cut where no character is cut.
    fn slide(&mut self) {
        for keep in CONTEXT..WINDOW {
            let kept = self.ids.len().saturating_sub(keep);
            let text = self.decoder.text(self.ids.get(kept..).unwrap_or(&[]));
            if !text.is_empty() && !text.contains(REPLACEMENT) {
                self.ids.drain(..kept);
                self.shown = text;
                return;
            }
        }
        // Special tokens have no text; those in between say nothing of the text around them either.
        let says = |id: &u32| !self.decoder.text(&[*id]).is_empty();
        let spoken: Vec<u32> = self.ids.iter().copied().filter(says).collect();
        if self.decoder.text(&spoken) == self.shown {
            self.ids = spoken;
        }
    }
}

/// What `text` has behind that which was shown; where it differs, from the difference on.
fn news<'t>(shown: &str, text: &'t str) -> &'t str {
    if shown.starts_with(text) {
        return "";
    }
    let differ = |((_, a), (_, b)): &((usize, char), (usize, char))| a != b;
    let mut pairs = text.char_indices().zip(shown.char_indices());
    let common = match pairs.find(differ) {
        Some(((at, _), _)) => at,
        None => shown.len(),
    };
    text.get(common..).unwrap_or("")
}

/// Cuts text at the first of some strings, even where it comes in pieces.
#[derive(Clone, Debug, Default)]
pub struct Stops {
    stops: Vec<String>,
    held: String,
}

/// What [`Stops::push`] lets through.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Passed {
    /// Text that is in front of any stop string, for sure.
    pub text: String,
    /// The stop string that was met; nothing is to be pushed after it.
    pub stop: Option<String>,
}

impl Stops {
    /// Stops at any of these; empty ones are left out.
    pub fn new(stops: impl IntoIterator<Item = String>) -> Self {
        Self {
            stops: stops.into_iter().filter(|s| !s.is_empty()).collect(),
            held: String::new(),
        }
    }

    /// Takes text; holds back an end with which a stop string may begin.
    ///
    /// Of several stop strings the one that begins first counts; of those, the longest.
    pub fn push(&mut self, text: &str) -> Passed {
        self.held.push_str(text);
        let found = self
            .stops
            .iter()
            .filter_map(|s| Some((self.held.find(s.as_str())?, s)));
        let first = found.min_by_key(|(at, s)| (*at, std::cmp::Reverse(s.len())));
        let hold = self.begins();
        if let Some((at, stop)) = first {
            // A longer one that began earlier may still be completed, but text that has come decides.
            let stop = stop.clone();
            self.held.truncate(at);
            return Passed {
                text: std::mem::take(&mut self.held),
                stop: Some(stop),
            };
        }
        let rest = self.held.split_off(hold);
        Passed {
            text: std::mem::replace(&mut self.held, rest),
            stop: None,
        }
    }

    /// Gives what was held back; there is no more text.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }

    /// Where the longest end begins that is the beginning of a stop string.
    fn begins(&self) -> usize {
        let starts = self.held.char_indices().map(|(at, _)| at);
        let opens = |at: &usize| {
            let end = self.held.get(*at..).unwrap_or("");
            self.stops
                .iter()
                .any(|s| s.len() > end.len() && s.starts_with(end))
        };
        let longest = self.stops.iter().map(String::len).max().unwrap_or(0);
        let from = self.held.len().saturating_sub(longest);
        starts
            .filter(|&at| at >= from)
            .find(opens)
            .unwrap_or(self.held.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Ids are bytes; the text is what `String::from_utf8_lossy` makes of them.
    struct Bytes;

    impl Decode for Bytes {
        fn text(&self, ids: &[u32]) -> String {
            let bytes: Vec<u8> = ids.iter().map(|&id| id as u8).collect();
            String::from_utf8_lossy(&bytes).into_owned()
        }
    }

    /// Ids are words; the first one's space is stripped, as SentencePiece decoders do.
    struct Words;

    impl Decode for Words {
        fn text(&self, ids: &[u32]) -> String {
            let text: String = ids.iter().map(|id| format!(" w{id}")).collect();
            text.trim_start().to_owned()
        }
    }

    /// Runs of byte tokens are valid as a whole or not at all, as `ByteFallback` has it.
    struct Fallback;

    impl Decode for Fallback {
        fn text(&self, ids: &[u32]) -> String {
            let bytes: Vec<u8> = ids.iter().map(|&id| id as u8).collect();
            String::from_utf8(bytes).unwrap_or_else(|e| "\u{fffd}".repeat(e.as_bytes().len()))
        }
    }

    fn stream(decoder: &dyn Decode, prompt: &[u32], ids: &[u32]) -> Vec<String> {
        let mut text = Detokenizer::new(decoder, prompt);
        let mut pieces: Vec<String> = ids.iter().map(|&id| text.push(id)).collect();
        pieces.push(text.finish());
        pieces
    }

    fn bytes(text: &str) -> Vec<u32> {
        text.bytes().map(u32::from).collect()
    }

    #[test]
    fn characters_come_whole() {
        let pieces = stream(&Bytes, &[], &bytes("a€b"));
        assert_eq!(pieces, ["a", "", "", "€", "b", ""]);
    }

    #[test]
    fn an_open_character_is_told_at_the_end() {
        assert_eq!(
            stream(&Bytes, &[], &[0x61, 0xe2, 0x82]).concat(),
            "a\u{fffd}"
        );
        assert_eq!(stream(&Bytes, &[], &[0xe2, 0x61]).concat(), "\u{fffd}a");
    }

    #[test]
    fn a_space_behind_the_prompt_stays() {
        assert_eq!(stream(&Words, &[1, 2], &[3, 4]).concat(), " w3 w4");
        assert_eq!(stream(&Words, &[], &[3, 4]).concat(), "w3 w4");
        let ids: Vec<u32> = (0..500).collect();
        assert_eq!(stream(&Words, &[], &ids).concat(), Words.text(&ids));
    }

    #[test]
    fn what_is_never_valid_does_not_grow_without_end() {
        let mut text = Detokenizer::new(&Bytes, &[]);
        for _ in 0..2000 {
            let _ = text.push(0xff);
            assert!(text.ids.len() <= LIMIT + 1);
        }
    }

    /// Ids from 1000 on are special.
    struct Special;

    impl Decode for Special {
        fn text(&self, ids: &[u32]) -> String {
            let spoken: Vec<u32> = ids.iter().copied().filter(|&id| id < 1000).collect();
            Words.text(&spoken)
        }
    }

    #[test]
    fn special_tokens_do_not_lengthen_the_window() {
        for prompt in [&[][..], &[1, 2]] {
            let mut text = Detokenizer::new(&Special, prompt);
            let mut out = text.push(3);
            for _ in 0..2000 {
                out += &text.push(1000);
                assert!(text.ids.len() <= WINDOW + 1);
            }
            out += &text.push(4);
            assert_eq!(out.trim_start(), "w3 w4", "{prompt:?}");
        }
    }

    fn push_all(stops: &[&str], pieces: &[&str]) -> (String, Option<String>) {
        let mut filter = Stops::new(stops.iter().map(|s| (*s).to_owned()));
        let mut out = String::new();
        for piece in pieces {
            let passed = filter.push(piece);
            out += &passed.text;
            if passed.stop.is_some() {
                return (out, passed.stop);
            }
        }
        (out + &filter.finish(), None)
    }

    #[test]
    fn stop_strings_over_several_pieces() {
        let stop = |s: &str| Some(s.to_owned());
        assert_eq!(
            push_all(&["END"], &["one E", "N", "D two"]),
            ("one ".into(), stop("END"))
        );
        assert_eq!(
            push_all(&["END"], &["one E", "N", "d"]),
            ("one ENd".into(), None)
        );
        assert_eq!(push_all(&["END"], &["one EN"]), ("one EN".into(), None));
        assert_eq!(
            push_all(&["aab"], &["aa", "ab", "c"]),
            ("a".into(), stop("aab"))
        );
        assert_eq!(
            push_all(&["\n\n", "x"], &["a\n", "b", "\n\nx"]),
            ("a\nb".into(), stop("\n\n"))
        );
        assert_eq!(push_all(&["é"], &["caf", "é!"]), ("caf".into(), stop("é")));
        assert_eq!(
            push_all(&["ab", "abc"], &["xabc"]),
            ("x".into(), stop("abc"))
        );
        assert_eq!(push_all(&[""], &["text"]), ("text".into(), None));
    }

    #[test]
    fn only_what_may_become_a_stop_string_waits() {
        let mut filter = Stops::new(["STOP".to_owned()]);
        assert_eq!(filter.push("go on S").text, "go on ");
        assert_eq!(filter.push("o what").text, "So what");
    }

    proptest! {
        #[test]
        fn streams_as_it_decodes(text in "\\PC{0,80}", prompt in "[a-z]{0,10}") {
            let ids = bytes(&text);
            for decoder in [&Bytes as &dyn Decode, &Fallback] {
                let pieces = stream(decoder, &bytes(&prompt), &ids);
                prop_assert_eq!(pieces.concat(), text.as_str());
                prop_assert!(!pieces.concat().contains(REPLACEMENT) || text.contains(REPLACEMENT));
            }
        }

        #[test]
        fn any_bytes_are_told_as_they_decode(ids in prop::collection::vec(0u32..256, 0..100)) {
            prop_assert_eq!(stream(&Bytes, &[], &ids).concat(), Bytes.text(&ids));
            let _ = stream(&Fallback, &[], &ids);
        }

        #[test]
        fn pieces_do_not_matter_to_a_stop_string(
            text in "[abc]{0,30}",
            stop in "[abc]{1,4}",
            cuts in prop::collection::vec(0usize..30, 0..6),
        ) {
            let mut cuts: Vec<usize> = cuts.into_iter().map(|c| c.min(text.len())).collect();
            cuts.extend([0, text.len()]);
            cuts.sort_unstable();
            let pieces: Vec<&str> = cuts.windows(2).map(|w| &text[w[0]..w[1]]).collect();
            let expected = match text.find(&stop) {
                Some(at) => (text[..at].to_owned(), Some(stop.clone())),
                None => (text.clone(), None),
            };
            prop_assert_eq!(push_all(&[&stop], &pieces), expected);
        }
    }
}
