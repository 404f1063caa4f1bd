"""From exercises to a marked gradebook: assignments, the students' edition, isolated marking."""
