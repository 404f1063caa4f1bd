"""A lock that a Linux process puts on itself and cannot take off again (seccomp).

After ``lock()`` the kernel refuses it new processes, other programs, sockets, signals to others and
changes of files by name. Threads, memory and reading files stay. It does not need to be root, nor
anything installed, and holds for root too, whom limits of the number of processes do not bind.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
import sys

# Numbers of system calls: (x86-64, AArch64); None where an architecture has no such call.
CALLS: dict[str, tuple[int | None, int | None]] = {
    "fork": (57, None),
    "vfork": (58, None),
    "execve": (59, 221),
    "execveat": (322, 281),
    "kill": (62, 129),
    "tkill": (200, 130),
    "rt_sigqueueinfo": (129, 138),
    "pidfd_open": (434, 434),
    "pidfd_send_signal": (424, 424),
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "socket": (41, 198),
    "socketpair": (53, 199),
    "connect": (42, 203),
    "io_uring_setup": (425, 425),
    "bpf": (321, 280),
    "userfaultfd": (323, 282),
    "perf_event_open": (298, 241),
    "mount": (165, 40),
    "umount2": (166, 39),
    "unshare": (272, 97),
    "setns": (308, 268),
    "keyctl": (250, 219),
    "truncate": (76, 45),
    "rename": (82, None),
    "renameat": (264, 38),
    "renameat2": (316, 276),
    "mkdir": (83, None),
    "mkdirat": (258, 34),
    "rmdir": (84, None),
    "creat": (85, None),
    "link": (86, None),
    "linkat": (265, 37),
    "unlink": (87, None),
    "unlinkat": (263, 35),
    "symlink": (88, None),
    "symlinkat": (266, 36),
    "mknod": (133, None),
    "mknodat": (259, 33),
    "chmod": (90, None),
    "fchmodat": (268, 53),
    "chown": (92, None),
    "lchown": (94, None),
    "fchownat": (260, 54),
    "openat2": (437, 437),
    "utimensat": (280, 88),
    "setxattr": (188, 5),
    "chroot": (161, 51),
    "setrlimit": (160, 164),
    "prlimit64": (302, 261),
    "memfd_create": (319, 279),
    "shmget": (29, 194),
    "reboot": (169, 142),
    "kexec_load": (246, 104),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "clock_settime": (227, 112),
}
OPEN = {"open": ((2, None), 1), "openat": ((257, 56), 2)}  # and which argument has the flags
CLONE, CLONE3 = (56, 220), (435, 435)

ARCHITECTURES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
CLONE_THREAD = 0x00010000
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC

LOAD, JUMP_EQUAL, JUMP_ANY_BIT, JUMP_AT_LEAST, RETURN = 0x20, 0x15, 0x45, 0x35, 0x06
ALLOW, KILL, REFUSE = 0x7FFF0000, 0x80000000, 0x00050000  # REFUSE with an errno in its low bits
NUMBER, ARCHITECTURE, ARGUMENTS = 0, 4, 16  # where the kernel's struct seccomp_data has them

PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 38, 22, 2


def possible() -> bool:
    """Whether this system has the lock: Linux on a processor whose calls are listed here."""
    return sys.platform == "linux" and platform.machine() in ARCHITECTURES


def lock() -> None:
    """Put the lock on this process and on all threads that it starts from now on.

    Does nothing where it is not ``possible``; raises OSError where the kernel refuses it.
    """
    if not possible():
        return
    program = _program()
    code = ctypes.create_string_buffer(program, len(program))
    table = struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(code))
    libc = ctypes.CDLL(None, use_errno=True)
    for arguments in (
        (PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0),
        (PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.create_string_buffer(table, len(table)), 0, 0),
    ):
        if libc.prctl(*arguments):
            number = ctypes.get_errno()
            raise OSError(number, f"seccomp: {os.strerror(number)}")


def _program() -> bytes:
    """The filter: a short program that the kernel runs before every system call."""
    column, architecture = ARCHITECTURES[platform.machine()]
    lines = [
        _line(LOAD, ARCHITECTURE),
        _line(JUMP_EQUAL, architecture, 1, 0),
        _line(RETURN, KILL),
        _line(LOAD, NUMBER),
        _line(JUMP_AT_LEAST, 0x40000000, 0, 1),  # x86-64's other numbering of the same calls
        _line(RETURN, KILL),
    ]
    for calls in CALLS.values():
        number = calls[column]
        if number is not None:
            lines += [_line(JUMP_EQUAL, number, 0, 1), _refuse(errno.EPERM)]
    # glibc falls back to clone, whose flags can be read here, if there is no clone3
    lines += [_line(JUMP_EQUAL, CLONE3[column], 0, 1), _refuse(errno.ENOSYS)]
    lines += _unless(CLONE[column], argument=0, bits=CLONE_THREAD, want=True)
    for numbers, argument in OPEN.values():
        number = numbers[column]
        if number is not None:
            lines += _unless(number, argument, bits=WRITING, want=False)
    return b"".join([*lines, _line(RETURN, ALLOW)])


def _unless(number: int, argument: int, bits: int, want: bool) -> list[bytes]:
    """Refuse a call unless one of these bits of an argument is set, or unless none is."""
    return [
        _line(JUMP_EQUAL, number, 0, 4),
        _line(LOAD, ARGUMENTS + 8 * argument),
        _line(JUMP_ANY_BIT, bits, 1, 0) if want else _line(JUMP_ANY_BIT, bits, 0, 1),
        _refuse(errno.EPERM),
        _line(RETURN, ALLOW),
    ]


def _refuse(number: int) -> bytes:
    return _line(RETURN, REFUSE | number)


def _line(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("HBBI", code, if_true, if_false, value)
