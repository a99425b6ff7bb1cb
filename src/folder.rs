//! The folder of the control socket: whoever can write to it, or put another in its place, can put a socket of his own there.

use std::ffi::OsString;
use std::fs::Metadata;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

use crate::error::{Error, PathProblem, Result};
use crate::guests::Guests;

/// How many symbolic links a path may lead through, as for the kernel (path_resolution(7)).
const MOST_LINKS: u32 = 40;
const STICKY: u32 = 0o1000;

/// Checks that nobody but the guests can put a socket or a lock file in our place: neither in the folder itself, nor by
/// renaming a folder on the way to it, nor by changing a link.
pub(crate) fn check(path: &Path, guests: &Guests) -> Result<()> {
    let folder = path.parent().unwrap_or(Path::new("/"));
    let metadata = metadata(path, folder)?;
    let owner = metadata.uid();
    if !guests.admit_user(owner) {
        return Err(Error::path(path, PathProblem::FolderNotOurs { uid: owner }));
    }
    if others_write(&metadata, guests) {
        return Err(Error::path(path, PathProblem::SharedFolder { mode: metadata.mode() & 0o7777 }));
    }
    check_way(path, folder, guests)
}

/// Checks that there is a folder.
pub(crate) fn exists(path: &Path) -> Result<()> {
    metadata(path, path.parent().unwrap_or(Path::new("/"))).map(drop)
}

fn metadata(path: &Path, folder: &Path) -> Result<Metadata> {
    match std::fs::metadata(folder) {
        Ok(metadata) if metadata.is_dir() => Ok(metadata),
        Ok(_) => Err(Error::path(path, PathProblem::NoFolder)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err(Error::path(path, PathProblem::NoFolder)),
        Err(error) => Err(Error::io(format!("look at {}", folder.display()), error)),
    }
}

fn others_write(metadata: &Metadata, guests: &Guests) -> bool {
    let group_may = metadata.mode() & 0o020 != 0 && !guests.has_group(metadata.gid());
    group_may || metadata.mode() & 0o002 != 0
}

/// Goes the way that the kernel goes, step by step, and looks at each folder and each link on it.
fn check_way(path: &Path, folder: &Path, guests: &Guests) -> Result<()> {
    // Who owns the root can replace everything; in a user namespace he may be a user without a number.
    let root = std::fs::metadata("/").map_err(|error| Error::io("look at /", error))?.uid();
    let mut here = PathBuf::from("/");
    let mut ahead = steps(folder);
    let mut links = 0;
    while let Some(step) = ahead.pop() {
        if step == ".." {
            here.pop();
            continue;
        }
        let next = here.join(step);
        let metadata = std::fs::symlink_metadata(&next)
            .map_err(|error| Error::io(format!("look at {}", next.display()), error))?;
        let ours = guests.admit_user(metadata.uid()) || metadata.uid() == root;
        if metadata.is_symlink() {
            links += 1;
            let target =
                std::fs::read_link(&next).map_err(|error| Error::io(format!("follow {}", next.display()), error))?;
            if !ours || links > MOST_LINKS {
                return Err(unsafe_way(path, next));
            }
            if target.is_absolute() {
                here = PathBuf::from("/");
            }
            ahead.extend(steps(&target));
            continue;
        }
        // In a sticky folder nobody can rename what is another's (and what comes next must be ours).
        if !ours || (others_write(&metadata, guests) && metadata.mode() & STICKY == 0) {
            return Err(unsafe_way(path, next));
        }
        here = next;
    }
    Ok(())
}

/// The steps of a path, the first one last.
fn steps(path: &Path) -> Vec<OsString> {
    let step = |component: Component<'_>| match component {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some(OsString::from("..")),
        Component::Prefix(_) | Component::RootDir | Component::CurDir => None,
    };
    path.components().rev().filter_map(step).collect()
}

fn unsafe_way(path: &Path, folder: PathBuf) -> Error {
    Error::path(path, PathProblem::UnsafeWay { at: folder })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt, symlink};

    fn set_mode(path: &Path, mode: u32) {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn every_folder_and_every_link_on_the_way_counts() {
        let top = tempfile::tempdir().unwrap();
        let (open, folder) = (top.path().join("open"), top.path().join("open/folder"));
        std::fs::create_dir_all(&folder).unwrap();
        set_mode(&folder, 0o700);
        let found = |path: &Path| match check(&path.join("x.sock"), &Guests::default()) {
            Ok(()) => None,
            Err(Error::Path { problem: PathProblem::UnsafeWay { at }, .. }) => Some(at),
            Err(error) => panic!("{error}"),
        };
        assert_eq!(found(&folder), None);
        set_mode(&open, 0o777);
        assert_eq!(found(&folder), Some(open.clone()));
        // By a link, by a link to a link, and by a step back.
        let (one, two) = (top.path().join("one"), top.path().join("two"));
        symlink(&folder, &one).unwrap();
        symlink("one", &two).unwrap();
        let back = top.path().join("open/../open/folder");
        for way in [&one, &two, &back] {
            assert_eq!(found(way), Some(open.clone()), "{}", way.display());
        }
        set_mode(&open, 0o1777);
        for way in [&folder, &one, &two, &back] {
            assert_eq!(found(way), None, "{}", way.display());
        }
    }
}
