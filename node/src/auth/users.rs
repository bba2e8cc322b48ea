//! Channels whose names say who may hear them: `dialog#1,2` is for the users 1 and 2.

/// What stands between the name and the users.
const BEFORE_USERS: char = '#';

/// What stands between two users.
const BETWEEN_USERS: char = ',';

/// Whether `channel` is for certain users alone.
pub(crate) fn names_users(channel: &str) -> bool {
    channel.contains(BEFORE_USERS)
}

/// Whether `user` may hear `channel`, as far as its name is concerned. Nobody (an empty user) is never named.
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
            // Whatever stands behind the first mark is users.
            ("dialog#1#2", "1", false),
            ("dialog#1#2", "1#2", true),
            ("dialog# 1", "1", false),
        ] {
            assert_eq!(is_let_in(channel, user), expected, "{channel} {user}");
            assert_eq!(names_users(channel), channel.contains('#'));
        }
    }
}
