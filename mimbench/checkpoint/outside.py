"""What is wrong with a checkpoint file, as far as that can be known without reading its tensors or torch."""

from __future__ import annotations

import os
import stat
import zipfile
from pathlib import Path

SCRIPT = (
    "It is a TorchScript archive, which is code. If you trust it, save its tensors yourself: "
    "state = torch.jit.load(PATH, 'cpu').state_dict(), then "
    "safetensors.torch.save_file({k: v.contiguous().clone() for k, v in state.items()}, 'x.safetensors')."
)
BLOCK = 1 << 20


def problem(path: Path) -> str:
    """Why a file cannot be a checkpoint, by its kind, its beginning and its header; empty if it may be."""
    if not os.path.lexists(path):
        return "There is no such file or folder."
    if wrong := problem_of_file(path):
        return wrong
    try:
        with open(path, "rb") as file:
            start = file.read(64)
    except OSError as error:
        return f"It cannot be read ({error.strerror})."
    if path.suffix == ".safetensors" or start[8:9] == b"{":
        return problem_of_safetensors(path)
    return problem_of_archive(path, checksums=False) if start.startswith(b"PK") else problem_of_start(start)


def problem_of_safetensors(path: Path) -> str:
    """What is wrong with the header: the library checks that every tensor lies inside the file."""
    from safetensors import safe_open

    try:
        with safe_open(path, framework="np"):
            return ""
    except Exception as error:  # the library raises errors of many types for damaged files
        return f"Not readable as safetensors: it is damaged or cut short ({first_line(error)})."


def problem_of_file(path: Path) -> str:
    """Why a path is not a readable file; empty if it may be one."""
    try:
        about = path.stat()
    except OSError as error:
        return f"It cannot be read ({error.strerror})."
    if stat.S_ISDIR(about.st_mode):
        return "It is a folder; name the checkpoint's file."
    if not stat.S_ISREG(about.st_mode):
        return "It is a pipe or a device, not a file."
    if not about.st_size:
        return "It is empty."
    return problem_of_size(about.st_size)


def problem_of_size(size: int) -> str:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if size <= memory:
        return ""
    return (
        f"It has {size / 2**30:.0f} GiB, more than this machine's memory. Save the encoder's weights alone."
    )


def problem_of_start(start: bytes) -> str:
    """Why a file that is no archive cannot be a checkpoint, by its first bytes."""
    if start.startswith(b"\x80"):  # a pickle: torch.save before PyTorch 1.6, or pickle.dump
        return ""
    if start.startswith(b"version https://git-lfs"):
        return "It is a Git LFS pointer, not the file itself: `git lfs pull` fetches that."
    if start.lstrip()[:1] == b"<":
        return "It is a web page, not a checkpoint: download the file itself."
    return "It is neither a safetensors file nor one that torch.save wrote."


def problem_of_archive(path: Path, *, checksums: bool) -> str:
    """Why torch should not read a zip archive; `checksums`: read it all, because torch compares none."""
    try:
        with zipfile.ZipFile(path) as archive:
            records = archive.infolist()
            names = [record.filename for record in records]
            if any(name.endswith("/constants.pkl") or "/code/" in name for name in names):
                return SCRIPT
            if not any(name.endswith("/data.pkl") for name in names):
                return "It is a zip archive, but torch.save did not write it."
            problem = problem_of_size(sum(record.file_size for record in records))
            if problem:
                return problem
            for record in records if checksums else ():
                if record.CRC:  # 0: written without checksums (torch.serialization.set_crc32_options)
                    with archive.open(record) as content:
                        while content.read(BLOCK):
                            pass
    except (zipfile.BadZipFile, EOFError, OSError, ValueError, NotImplementedError, RuntimeError) as error:
        return f"It is damaged or cut short ({first_line(error)}). Download or copy it again."
    except Exception as error:  # zlib.error and others of a damaged archive
        return f"It is damaged ({type(error).__name__}: {first_line(error)}). Download or copy it again."
    return ""


def first_line(error: Exception) -> str:
    """The first line of an error's text, or its type."""
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__
