//! Channels whose names list the allowed users: `dialog#1,2` is for the users 1 and 2.

/// The separator between the name and the users.
const BEFORE_USERS: char = '#';

/// The separator between two users.
const BETWEEN_USERS: char = ',';

/// Whether `channel` is limited to certain users.
pub(crate) fn names_users(channel: &str) -> bool {
    channel.contains(BEFORE_USERS)
}

/// Whether the name of `channel` allows `user`. An anonymous user (empty) is never allowed.
pub(crate) fn is_let_in(channel: &str, user: &str) -> bool {
    match channel.split_once(BEFORE_USERS) {
        None => true,
        Some((_, users)) => {
            !user.is_empty() && users.split(BETWEEN_USERS).any(|named| named == user)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_channel_is_for_the_users_in_its_name() {
        for (channel, user, expected) in [
            ("news", "1", true),
            ("news", "", true),
            ("dialog#1,2", "1", true),
            ("dialog#1,2", "2", true),
            ("dialog#1,2", "3", false),
            ("dialog#1,2", "1,2", false),
            ("dialog#12", "1", false),
            ("dialog#", "", false),
            ("dialog#,", "", false),
            ("#1", "1", true),
            ("chat:dialog#1", "1", true),
            // Everything after the first separator is users.
            ("dialog#1#2", "1", false),
            ("dialog#1#2", "1#2", true),
            ("dialog# 1", "1", false),
        ] {
            assert_eq!(is_let_in(channel, user), expected, "{channel} {user}");
            assert_eq!(names_users(channel), channel.contains('#'));
        }
    }
}
