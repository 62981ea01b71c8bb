//! Markdown on a terminal while it comes: every character is shown as soon as it is known what it
//! is, without ever going back. Renderers of whole texts would have to wait for the end of a
//! paragraph.

use std::io::{self, Write};

/// What comes from a model may hold sequences that would make a terminal do things.
pub(super) fn tame(text: &str) -> String {
    text.chars().filter(|c| !c.is_control() || matches!(c, '\n' | '\t')).collect()
}

const RESET: &str = "\x1b[0m";
const BOLD: &str = "\x1b[1m";
const DIM: &str = "\x1b[2m";
const CODE: &str = "\x1b[36m";

/// Where a text stands.
#[derive(Debug)]
pub(super) struct Page<W: Write> {
    out: W,
    colours: bool,
    /// What cannot be told apart yet.
    held: String,
    at_start: bool,
    fenced: bool,
    heading: bool,
    bold: bool,
    code: bool,
    wrote: bool,
}

impl<W: Write> Page<W> {
    /// A page of its own; without colours texts pass as they are, but tame.
    pub(super) fn new(out: W, colours: bool) -> Self {
        Self {
            out,
            colours,
            held: String::new(),
            at_start: true,
            fenced: false,
            heading: false,
            bold: false,
            code: false,
            wrote: false,
        }
    }

    /// Shows more of it.
    pub(super) fn text(&mut self, text: &str) -> io::Result<()> {
        let text = tame(text);
        self.wrote |= !text.is_empty();
        if !self.colours {
            self.out.write_all(text.as_bytes())?;
            return self.out.flush();
        }
        for c in text.chars() {
            self.held.push(c);
            self.settle(false)?;
        }
        self.out.flush()
    }

    /// Shows what was held back, and leaves the terminal as it was.
    pub(super) fn end(&mut self) -> io::Result<()> {
        self.settle(true)?;
        if self.colours {
            self.out.write_all(RESET.as_bytes())?;
        }
        if self.wrote {
            self.out.write_all(b"\n")?;
        }
        self.out.flush()
    }

    /// Shows of what is held all that is certain, at the end the rest.
    fn settle(&mut self, last: bool) -> io::Result<()> {
        while !self.held.is_empty() {
            let took = if self.at_start { self.block(last)? } else { self.inline(last)? };
            if took == 0 {
                return Ok(());
            }
            self.held.drain(..took);
        }
        Ok(())
    }

    /// The beginning of a line: how many bytes of it are shown or dropped.
    fn block(&mut self, last: bool) -> io::Result<usize> {
        let held = self.held.as_str();
        let indent = held.len() - held.trim_start_matches(' ').len();
        let rest = &held[indent..];
        if !last && (rest.is_empty() || rest.len() < 3 && "```".starts_with(rest)) {
            return Ok(0);
        }
        if rest.starts_with("```") {
            let Some(end) = held.find('\n').map(|at| at + 1).or(last.then_some(held.len())) else {
                return Ok(0);
            };
            self.fenced = !self.fenced;
            write!(self.out, "{RESET}{DIM}{}{RESET}", &held[..end])?;
            self.paint()?;
            return Ok(end);
        }
        if self.fenced {
            self.at_start = false;
            return self.inline(last);
        }
        let marks = rest.len() - rest.trim_start_matches('#').len();
        let waits = |rest: &str| rest.len() == marks && marks <= 6 || rest == "-" || rest == "*";
        if !last && waits(rest) && !rest.is_empty() {
            return Ok(0);
        }
        self.at_start = false;
        let (spaces, took) = (" ".repeat(indent), indent + 2);
        if (1..=6).contains(&marks) && rest[marks..].starts_with(' ') {
            self.heading = true;
            self.paint()?;
            return Ok(indent + marks + 1);
        }
        if rest.starts_with("- ") || rest.starts_with("* ") {
            write!(self.out, "{spaces}• ")?;
            return Ok(took);
        }
        if rest.starts_with('>') {
            write!(self.out, "{spaces}{DIM}│{RESET}")?;
            return Ok(indent + 1);
        }
        write!(self.out, "{spaces}")?;
        if indent > 0 { Ok(indent) } else { self.inline(last) }
    }

    /// Within a line.
    fn inline(&mut self, last: bool) -> io::Result<usize> {
        let Some(first) = self.held.chars().next() else { return Ok(0) };
        if first == '\n' {
            (self.at_start, self.heading, self.bold, self.code) = (true, false, false, false);
            writeln!(self.out, "{RESET}")?;
            self.paint()?;
            return Ok(1);
        }
        if self.fenced {
            write!(self.out, "{first}")?;
            return Ok(first.len_utf8());
        }
        if first == '`' {
            self.code = !self.code;
            self.paint()?;
            return Ok(1);
        }
        if first == '*' && !self.code {
            if self.held.starts_with("**") {
                self.bold = !self.bold;
                self.paint()?;
                return Ok(2);
            }
            if self.held.len() == 1 && !last {
                return Ok(0);
            }
        }
        write!(self.out, "{first}")?;
        Ok(first.len_utf8())
    }

    fn paint(&mut self) -> io::Result<()> {
        write!(self.out, "{RESET}")?;
        if self.bold || self.heading {
            write!(self.out, "{BOLD}")?;
        }
        if self.code || self.fenced {
            write!(self.out, "{CODE}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is shown of a text that comes so many characters at a time.
    fn shown(text: &str, at_once: usize, colours: bool) -> String {
        let mut page = Page::new(Vec::new(), colours);
        let chars: Vec<char> = text.chars().collect();
        for piece in chars.chunks(at_once) {
            page.text(&piece.iter().collect::<String>()).unwrap();
        }
        page.end().unwrap();
        String::from_utf8(page.out).unwrap()
    }

    fn bare(text: &str) -> String {
        console::strip_ansi_codes(text).into_owned()
    }

    const TEXT: &str = "# Rivers\n\nThe **Rhine** and `the *Elbe*`, 2 * 3.\n\
                        - one\n  * two\n> said\n\
                        ```rust\nlet a = **b;\n# no heading\n```\nEnd";

    #[test]
    fn marks_become_styles_and_code_stays_as_it_is() {
        let page = shown(TEXT, 1, true);
        let lines = "Rivers\n\nThe Rhine and the *Elbe*, 2 * 3.\n• one\n  • two\n│ said\n\
                     ```rust\nlet a = **b;\n# no heading\n```\nEnd\n";
        assert_eq!(bare(&page), lines);
        assert!(page.contains(&format!("{BOLD}Rhine")) && page.contains(&format!("{CODE}the")));
    }

    #[test]
    fn it_does_not_matter_in_which_pieces_a_text_comes() {
        for at_once in [2, 3, 7, 1000] {
            assert_eq!(shown(TEXT, at_once, true), shown(TEXT, 1, true), "{at_once}");
        }
    }

    #[test]
    fn without_colours_nothing_is_changed_but_what_would_command_the_terminal() {
        assert_eq!(shown("**a** \x1b]0;x\x07b\x1b[2J", 1, false), "**a** ]0;xb[2J\n");
        assert!(!shown("\x1b[31mred", 1, true).contains("\x1b[31m"));
        assert_eq!(bare(&shown("unclosed **bold `code", 1, true)), "unclosed bold code\n");
        for tail in ["*", "`", "``", "#", "-", "  ", "```"] {
            assert!(bare(&shown(tail, 1, true)).ends_with('\n'), "{tail}");
        }
    }
}
