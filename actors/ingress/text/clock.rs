//! `strftime` for templates that tell the model today's date; always UTC.

const DAYS: [&str; 7] =
    ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"];
const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];

/// Formats a moment in seconds since 1970; refuses what it does not know.
pub(super) fn strftime(format: &str, unix_s: u64) -> Result<String, String> {
    let (day, second) = (unix_s / 86_400, unix_s % 86_400);
    let (year, month, date) = civil(day);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    // 1 January 1970 was a Thursday.
    let weekday = DAYS[((day + 3) % 7) as usize];
    let month_name = MONTHS[(month - 1) as usize];
    let mut out = String::new();
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let part = match chars.next() {
            Some('Y') => year.to_string(),
            Some('y') => format!("{:02}", year % 100),
            Some('m') => format!("{month:02}"),
            Some('d') => format!("{date:02}"),
            Some('e') => format!("{date:2}"),
            Some('H') => format!("{hour:02}"),
            Some('M') => format!("{minute:02}"),
            Some('S') => format!("{second:02}"),
            Some('B') => month_name.to_owned(),
            Some('b') => month_name[..3].to_owned(),
            Some('A') => weekday.to_owned(),
            Some('a') => weekday[..3].to_owned(),
            Some('F') => format!("{year}-{month:02}-{date:02}"),
            Some('T') => format!("{hour:02}:{minute:02}:{second:02}"),
            Some('%') => "%".to_owned(),
            Some(other) => return Err(format!("strftime_now does not know %{other}")),
            None => return Err("strftime_now: the format ends in %".to_owned()),
        };
        out.push_str(&part);
    }
    Ok(out)
}

/// A moment in seconds since 1970 as ISO 8601 writes it.
pub(crate) fn iso_8601(unix_s: u64) -> String {
    strftime("%FT%TZ", unix_s).unwrap_or_default()
}

/// Year, month and date of a day counted from 1 January 1970, in the Gregorian calendar. Years
/// begin in March here, so that the leap day is the last (Hinnant, "chrono-compatible low-level
/// date algorithms").
fn civil(day: u64) -> (u64, u64, u64) {
    let day = day + 719_468;
    let (era, day) = (day / 146_097, day % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let date = day - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    (era * 400 + year + u64::from(month <= 2), month, date)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_written_as_python_does() {
        let all = "%Y-%m-%d %H:%M:%S %B %b %A %a %y %F %T %%";
        for (unix_s, text) in [
            (0, "1970-01-01 00:00:00 January Jan Thursday Thu 70 1970-01-01 00:00:00 %"),
            (951_782_399, "2000-02-28 23:59:59 February Feb Monday Mon 00 2000-02-28 23:59:59 %"),
            (951_782_400, "2000-02-29 00:00:00 February Feb Tuesday Tue 00 2000-02-29 00:00:00 %"),
            (1_764_547_199, "2025-11-30 23:59:59 November Nov Sunday Sun 25 2025-11-30 23:59:59 %"),
        ] {
            assert_eq!(strftime(all, unix_s).unwrap(), text);
        }
        assert!(strftime("%Q", 0).is_err());
        assert!(strftime("%", 0).is_err());
    }
}
