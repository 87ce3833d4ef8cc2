-- nbdev_readme and nbdev_contributing render a notebook to GitHub's Markdown with Quarto. What they write is what
-- fsdl_tools.book.site.readme says, so that both files are the same for everybody. Pages of the site are left alone.
local code = "import sys; from fsdl_tools.book.site import readme; sys.stdout.write(readme('..', sys.argv[1]))"

function Pandoc(doc)
  if not quarto.doc.is_format("gfm") then
    return nil
  end
  local notebook = pandoc.path.filename(quarto.doc.input_file)
  local text = pandoc.pipe("python", {"-c", code, notebook}, "")
  local title, body = text:match("^# ([^\n]*)\n+(.*)$")
  return pandoc.Pandoc({pandoc.RawBlock("markdown", body)}, {title = pandoc.RawInline("markdown", title)})
end
