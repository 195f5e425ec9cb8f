"""What the commands do, a module each: a configuration in, a result out."""
