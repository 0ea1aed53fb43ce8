"""Replaces a file all at once: whoever reads it, and whenever the machine stops, sees the old bytes or the new."""

import contextlib
import errno
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

from hina_kohya.trainers.errors import UserError

_ADVICE = {
    errno.ENOSPC: "free some space on that disk",
    errno.EDQUOT: "free some of your quota on that disk",
    errno.EFBIG: "files may not grow that large here (ulimit -f)",
    errno.EROFS: "that disk is mounted read-only; use an environment that you can write to",
    errno.EACCES: "run it as the owner of that folder, and close programs that use the file",
    errno.EPERM: "run it as the owner of that file",
}
_CANNOT_SYNC_FOLDERS = (errno.EINVAL, errno.ENOTSUP)  # some network file systems


def kept_original(file: Path) -> Path:
    return file.with_name(f"{file.name}.hina-original")


def leftovers(file: Path) -> list[Path]:
    """Staging copies of a run that was cut off."""
    return sorted(file.parent.glob(f"{file.name}.hina-staging-*"))


@contextlib.contextmanager
def staging(file: Path, data: bytes) -> Iterator[Path]:
    """A copy of the new bytes beside the file, gone afterwards whatever happens. Raises UserError."""
    try:
        _clean(file)
        yield _stage(file, data)
    except OSError as error:
        raise _refusal(file, error) from error
    finally:
        with contextlib.suppress(OSError):  # what cannot be removed is removed by the next run
            _clean(file)


def put(staged: Path, file: Path, keep: bytes | None = None) -> None:
    """The staged copy in the place of the file. `keep`: the file's bytes now, to be left beside it."""
    original = kept_original(file)
    try:
        # Only after the staging copy: that both are there tells a run that was cut off in between.
        if keep is None:
            original.unlink(missing_ok=True)
        else:
            os.replace(_copy(file, keep), original)
        _sync_folder(file.parent)
        os.replace(staged, file)  # the one step that touches the file, and the last that can fail
    except OSError:
        with contextlib.suppress(OSError):
            original.unlink(missing_ok=True)
        raise


def restore(file: Path) -> None:
    """Moves the kept original back. Raises UserError."""
    try:
        _clean(file)
        os.replace(kept_original(file), file)
    except OSError as error:
        raise _refusal(file, error) from error


def tidy(file: Path, forget_original: bool = False) -> None:
    """Removes what a run that was cut off has left, and the kept original where nobody needs it. Raises UserError."""
    try:
        _clean(file)
        if forget_original:
            kept_original(file).unlink(missing_ok=True)
    except OSError as error:
        raise _refusal(file, error) from error


def _clean(file: Path) -> None:
    left, kept = leftovers(file), kept_original(file)
    # Before the staging copy goes, without which this would look like the original of a file that was reinstalled.
    if left and kept.exists() and kept.read_bytes() == file.read_bytes():
        kept.unlink()
    for leftover in left:
        leftover.unlink(missing_ok=True)


def _stage(file: Path, data: bytes) -> Path:
    """A copy of `data` beside the file, on the disk, read back and like the file in mode and owner."""
    handle, name = tempfile.mkstemp(prefix=f"{file.name}.hina-staging-", dir=file.parent)
    with os.fdopen(handle, "wb") as staged:
        staged.write(data)
        staged.flush()
        os.fsync(staged.fileno())
    if Path(name).read_bytes() != data:
        raise OSError(errno.EIO, "what was written is not what is read back")
    like = file.stat()
    own = os.stat(name)
    if hasattr(os, "chown") and (own.st_uid, own.st_gid) != (like.st_uid, like.st_gid):
        os.chown(name, like.st_uid, like.st_gid)
    os.chmod(name, stat.S_IMODE(like.st_mode))
    return Path(name)


def _copy(file: Path, data: bytes) -> Path:
    """The file as it is, dates included; a link (conda, uv) stays a link to the same place."""
    copy = _stage(file, data)
    if file.is_symlink():
        copy.unlink()
        copy.symlink_to(os.readlink(file))
    else:
        shutil.copystat(file, copy)
    return copy


def _sync_folder(folder: Path) -> None:
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in _CANNOT_SYNC_FOLDERS:
            raise
    finally:
        os.close(handle)


def _refusal(file: Path, error: OSError) -> UserError:
    advice = _ADVICE.get(error.errno or 0, "check that disk")
    return UserError(f"cannot change {file}: {error.strerror or error}; nothing was changed; {advice}")
